"""The command ``rollups``: arguments in, plain text or JSON out, exit status by contract (``cli.application``).

What the commands do is in the modules they import, inside the commands: ``--help`` has to be quick. Help lists them in the order of the
imports here.
"""

from rollup_assets.cli.application import app as app

# isort: off
from rollup_assets.cli import pipeline as pipeline
from rollup_assets.cli import inspection as inspection
from rollup_assets.cli import quarantine as quarantine
from rollup_assets.cli import cleaning as cleaning
from rollup_assets.cli import history as history
from rollup_assets.cli import environment as environment
from rollup_assets.cli import demonstration as demonstration

# isort: on


def main() -> None:
    """Entry point of the console script."""
    app()
