"""Compiled kernels: pure functions of arrays. No files, no threads, no Dagster.

Importing a module of this package imports numba (1.6 to 2 s): do it inside the task that needs it.
"""
