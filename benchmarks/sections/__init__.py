"""What ``docs/performance.md`` shows of each benchmark: one module per benchmark.

Each has ``blocks()``: the page's tables by name, from the committed results. Those with pictures have ``plots()``: for each picture, the
results that it shows and how to draw it. Those that the product's targets depend on have ``targets()``.
"""
