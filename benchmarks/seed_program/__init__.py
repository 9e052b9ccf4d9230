"""The program that this project replaces, as the analysis of one of its runs describes it, and code to measure it beside this project.

``program``: the program itself, on Spark. ``recommendations``: what the analysis recommends, and what was done about each. ``ours``: this
project's part in the comparison. ``answers``: whether both answered the same. ``catalog``: the PostgreSQL server that both commit to.
``process``: one process of the benchmark.
"""
