"""The identity of the steps' code."""

from __future__ import annotations

CODE_VERSION = "6"
"""Part of every manifest. Raise it when a step's output changes for the same input: everything is made anew then. Raise it also when the
layout of the blocks changes that tasks send to each other: Spark's workers with other code are refused by it. What is said of bad rows
and files is no output in this sense."""
