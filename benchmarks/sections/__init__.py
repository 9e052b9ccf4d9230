"""What ``docs/performance.md`` shows of each benchmark: a module a benchmark.

Each has ``blocks()``: the page's tables by name, from the committed results. Those that draw have ``plots()``: for each picture the results
it shows and how to draw it. Those that the product's targets depend on have ``targets()``.
"""
