"""The program that this project replaces, as the analysis of one of its runs describes it, and what measures it beside this project.

``program``: the program itself, on Spark. ``recommendations``: what the analysis recommends, and what became of each. ``ours``: this
project's share of the same work. ``answers``: whether both answered the same. ``catalog``: the PostgreSQL server that both commit to.
``process``: one process of the benchmark.
"""
