"""Time-series rollups as Dagster assets, published to Apache Iceberg.

What datapoints, series, batches and rollups are is in docs/semantics.md. Words of the code besides:

- *stage*: where the assets of a batch lie before they are published. A *manifest* names the files of one asset and partition there.
- *receipt*: the manifest of ``rollup_table``, written when a commit has been made.
- *attempt*: one try at staging a partition, or at a commit; its id is in the names of its files and in its snapshot.
- *open window*: one that ends exactly where its batch ends: the next batch may still have points of it, *carries* it and finishes it.
- *reach*: how many earlier batches the rollups of a batch read.
- *elsewhere*: rows in a batch's folders whose time belongs to another batch.
"""

__version__ = "0.1.0"
