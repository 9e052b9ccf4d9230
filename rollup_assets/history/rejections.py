"""Content that was rolled back: the batch's receipt records the content's digest, so that it does not come back by itself.

A receipt names the rejected digests before the table is changed, marked as begun; the receipt that takes its place afterwards has no such
mark, and names the snapshot that was gone back to. A rollback that was killed in between is thus known, and nothing publishes what it was
about to take away.
"""

from __future__ import annotations

from rollup_assets.batches import Batch
from rollup_assets.storage.manifests import Manifest

REJECTED = "rejected"
BEGUN = "rollback_begun"
ROLLED_BACK_TO = "rolled_back_to"

_UNKNOWN = "rolled back to "
"""Prefix of the text that stands in for the digest of rows of unknown origin."""


def rejected_digests(receipt: Manifest | None) -> tuple[str, ...]:
    """Digests of the rollups that must not be published again."""
    return () if receipt is None else tuple(receipt.counters.get(REJECTED, ()))


def digest_of_unknown(target: int | None) -> str:
    """The text in a receipt in place of a digest if it is unknown which rollups the restored rows, if any, are from."""
    return f"{_UNKNOWN}{target}"


def is_known(digest: str) -> bool:
    """Whether this is a real digest of rollups, which can be rejected, and not a text that stands in for one."""
    return not digest.startswith(_UNKNOWN)


def is_begun(receipt: Manifest | None) -> bool:
    """Whether a rollback was begun and has not ended.

    Receipts of earlier versions have no such mark. For those, the rollback is unfinished while the receipt still names the rejected
    content.
    """
    return receipt is not None and (BEGUN in receipt.counters or receipt.digest in rejected_digests(receipt))


def still_rejected(receipt: Manifest | None, published: Manifest) -> list[str]:
    """The digests that stay rejected once these rollups are published."""
    return [digest for digest in rejected_digests(receipt) if digest != published.digest]


def refusal(receipt: Manifest | None, rollups: Manifest, batch: Batch) -> str | None:
    """Why these rollups must not be published; None if they may be."""
    if receipt is None or rollups.digest not in rejected_digests(receipt):
        return None
    if is_begun(receipt):
        return (
            f"a rollback of {batch} has begun and has not ended; run it again, or publish the rollups anyway with "
            f"`rollups backfill {batch} {batch} --force`"
        )
    return (
        f"the rollups of {batch} were rolled back, and are not published again until their inputs change; to publish them anyway, run "
        f"`rollups backfill {batch} {batch} --force`"
    )
