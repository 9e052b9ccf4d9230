"""``rollups doctor``: checks, before a run, that everything it needs is there.

The checks ask the modules that do the work, and repeat their sentences; nothing is written but probes, which are deleted again.
Nothing is imported here, since Spark's workers import this package for a few lines of it.
"""
