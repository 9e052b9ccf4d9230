"""What runs a step's tasks: ``base`` is the protocol, ``local`` does it with threads, ``spark`` on a cluster.

What the tasks do stays out (``steps``).
"""
