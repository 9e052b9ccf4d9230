"""Files: raw ones that are read, staged ones that are written, and the disk or S3 beneath both.

Places: ``filesystems``, ``objects`` and ``s3``, ``storage_errors``, ``refused_memory``. Raw data: ``landing_zone``, ``bounds``,
``copies``, ``raw_files``, ``raw_limits``, ``footers``. The stage: ``manifests``, ``datapoints``, ``partial_points``, ``quarantine``,
``allowances``, ``leftovers``; what its files look like: ``parquet``, ``encodings``, ``file_statistics``. Between tasks: ``blocks``,
``spill``, ``metric_names``. What the data means stays out (``steps``).
"""
