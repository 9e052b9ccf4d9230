"""The Iceberg table: its catalog, its snapshots, and the one way to commit to it.

A commit: ``commit`` is the only writer of rows, ``protocol`` its decisions, ``publish``, ``rollback`` and ``migration`` its goals
(``plans``). Reading: ``reading``, ``snapshots``, ``references``, ``acknowledged_snapshots``. Catalogs: ``catalog``, ``database``,
``postgres``, ``sql_catalog``, ``rest``, ``rest_client``, ``locks``, ``faults``. What PyIceberg does not do for a commit:
``transactions``, and what it imports. Whether something should be published, and what a publish was made from, stays out
(``steps.publish``, ``history``).
"""
