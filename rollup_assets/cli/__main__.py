"""``python -m rollup_assets.cli``."""

from rollup_assets.cli import main

main()
