"""One step per asset, in plain Python: manifests in, files and a manifest out.

``repartition`` stages a batch with the tasks of ``split`` and ``sort``; ``rollup`` rolls it up with the task of ``roll_up_shards``;
``publish`` decides what may reach the table. ``checks`` says what must be true, ``changes`` and ``parameters`` why something is made
again, ``quarantine_limits`` whether too much is quarantined. Dagster (``defs``), and how tasks are run (``engines``), stay out.
"""
