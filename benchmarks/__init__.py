"""The benchmark: every stage beside DuckDB, Polars and the decode + encode floor. Run with ``python -m benchmarks``."""
