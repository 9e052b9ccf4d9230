"""The generator: a seeded, realistic landing zone.

``fleet`` says what the series do, ``dirt`` what goes wrong, ``landing`` writes files.
"""
