def lines(r): return []
def write(r): pass
