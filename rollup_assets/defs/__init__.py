"""The pipeline as Dagster sees it: assets, checks, partitions, resources, jobs, schedule and sensor.

Also the runs that ``rollups backfill`` makes, and the folder of Dagster's records. What the steps do stays out (``rollup_assets.steps``).
"""
