"""The identity of the steps' code."""

from __future__ import annotations

CODE_VERSION = "6"
"""Part of every manifest: raise it when a step's output changes for the same input, so that everything is made anew. Raise it also when
the blocks change that a step's tasks send to each other: it tells workers with other code apart."""
