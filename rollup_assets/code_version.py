"""The identity of the steps' code."""

from __future__ import annotations

CODE_VERSION = "6"
"""Part of every manifest: raise it when a step's output changes for the same input, and everything is made anew. Also when the blocks
change that its tasks send to each other: workers with other code are told apart by it."""
