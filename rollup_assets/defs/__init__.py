"""The pipeline as Dagster sees it: assets, checks, partitions, resources, jobs. What the steps do stays out (``rollup_assets.steps``)."""
