"""The benchmarks: this project beside its peers, the seed's program and the floor of decoding and encoding.

Commands, each ``python -m benchmarks.NAME`` with ``--help`` (without a name: every stage beside DuckDB, Polars, DataFusion and ClickHouse):

- beside others: ``spark``, ``seed``, ``peer_sizes``
- this project alone: ``sizes``, ``seed_size``, ``shapes``, ``skew``, ``storages``, ``publishing``, ``table_age``,
  ``orchestration``, ``querying``, ``capacity``, ``load``
- nothing measured: ``data`` (the points), ``simulate_backfill``

How it works: ``data`` writes points to a site (``sites``); ``contenders`` says who does which task of ``tasks``, in which form of
``peers``; ``runner`` starts each in a process of its own (``child``) under a memory limit (``limits``), and ``check`` compares answers
before times count. Results are JSON in ``results``; ``report`` makes ``docs/performance.md`` from them, with one module of ``sections``
per benchmark, and ``scaling`` makes ``docs/scaling.md``.
"""
