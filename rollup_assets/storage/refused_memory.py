"""Memory that a reader of Parquet was refused: whether the file is to blame, and what to do if it is not.

A page's header says how much memory the page takes, and Arrow believes it before anything is compared with it.
"""

from __future__ import annotations

import re

from rollup_assets.errors import ShortOfMemoryError

_REFUSED = re.compile(r"alloc of size (\d+) failed")
# What a row takes at once in any form of its columns; names that share their beginnings are the largest.
_BYTES_PER_ROW = 256
# What readers take besides, however little they read.
_BYTES_OF_READERS = 16 << 20


def is_false_claim(error: Exception, size: int, rows: int) -> bool:
    """Whether memory was refused for more than a row group of ``size`` bytes by its footer can take, if so many rows are read at once.

    Then the header of a page is wrong, and the file is damaged.
    """
    refused = _REFUSED.search(str(error)) if isinstance(error, MemoryError) else None
    # Buffers grow to twice of what is in them.
    return refused is not None and int(refused[1]) > 2 * size + _BYTES_PER_ROW * rows + _BYTES_OF_READERS


def short_of_memory(what: str, error: MemoryError) -> ShortOfMemoryError:
    """The error for a file that cannot be read for want of memory, which says nothing about the file."""
    reason = (str(error).splitlines() or [""])[0][:200]
    return ShortOfMemoryError(
        f"{what} cannot be read: there is no memory for it ({reason or 'refused'}); raise the limit on this process' memory "
        "(`ulimit -v`, or its container's), or set ROLLUP_THREADS lower, and run the same command again"
    )
