"""The parts of ``benchmarks.querying``: tables in several layouts, and the readers that are asked about them."""
