"""Real servers as processes of this machine, from Python wheels: for tests, benchmarks and the production demo. Not installed."""
