"""The plan of one snapshot: the files that it removes and adds, and those that are made for it.

What is to be removed and added is decided by those who plan; here no row is lost on the way. Committing stays out.
"""

from __future__ import annotations

import errno
import shutil
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rollup_assets.errors import PublishError
from rollup_assets.iceberg.reading import LiveFile, RangeCounts, count_live_rows, read_file, require_intact
from rollup_assets.iceberg.snapshots import ancestors, is_first
from rollup_assets.storage.filesystems import Place, path_of
from rollup_assets.storage.manifests import digest_of
from rollup_assets.threads import thread_pool

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

_DAY_MICROSECONDS = 86_400_000_000
# Each copy takes memory for a piece that was read, and up to 32 MiB that are on their way to a store.
_COPIED_AT_ONCE = 8
_COPIED_BYTES = 8 << 20


class Goal(Protocol):
    """What the table is to hold after a commit (``iceberg.commit``), and how to tell whether it does."""

    @property
    def name(self) -> str:
        """The goal's name in messages: ``batch 2026-01-01-09:00``."""

    @property
    def command(self) -> str:
        """The command that tries again."""

    @property
    def repair(self) -> str:
        """The command that repairs a table that is not what the commit should have made it."""

    @property
    def predicate(self) -> BooleanExpression:
        """The rows that the goal is about; others may change meanwhile."""

    @property
    def expected(self) -> Mapping[int, int]:
        """How many of these rows the table should have, by resolution in ms; known once there is a plan."""

    def check(self, table: Table) -> None:
        """Compare a table that was loaded anew with the settings, as :func:`rollup_assets.iceberg.table.check_table` does."""

    def plan(self, table: Table) -> Plan:
        """What is left to be done in the table as it is; empty if nothing is."""

    def snapshot_in_place(self, table: Table) -> int | None:
        """If the plan is empty: a snapshot that has the goal's rows, which need not be the one that made them; None if there is none."""

    def counts(self, table: Table, snapshot_id: int | None) -> RangeCounts:
        """How many of these rows a snapshot (the current one unless given) has, and in how many files."""


@dataclass(slots=True)
class Copies:
    """Copies that the plans of one commit make: after a failed try, the next plan reuses them.

    They may be reused only while the current history still contains the snapshot of the first plan and no newer branch exists: a commit
    that is not in the history then did not land. Otherwise it may have landed, and its files are deleted when its snapshot expires.
    """

    may_have_landed: bool = False
    """As of the last :meth:`known`: whether an earlier plan's commit may have landed; the staged files in it are then copied too."""
    _since: int | None = None
    """The snapshot that the first of these plans was made for; None: the table had none."""
    _aside: frozenset[int] | None = None
    """Snapshots that the current one did not come from, when the first of these plans was made; None: there was no plan yet."""
    _made: dict[str, DataFile] = field(default_factory=dict)

    def known(self, table: Table) -> dict[str, DataFile]:
        """The copies that a plan for the table may reuse, by the path that each was copied from; the plan adds those that it makes."""
        past = list(ancestors(table, table.current_snapshot()))
        history = {one.snapshot_id for one in past}
        aside = frozenset(one.snapshot_id for one in table.snapshots()) - history
        began_here = self._since in history if self._since is not None else (not past or is_first(past[-1]))
        if self._aside is None or not began_here or not aside <= self._aside:
            self.may_have_landed = self._aside is not None
            self._since, self._aside, self._made = past[0].snapshot_id if past else None, aside, {}
        return self._made


@dataclass(slots=True)
class Plan:
    """One snapshot: the files it removes and the files it adds."""

    folder: Place
    """Where files that are made for the plan go."""
    removed: list[DataFile] = field(default_factory=list)
    added: list[DataFile] = field(default_factory=list)
    properties: dict[str, str] = field(default_factory=dict)
    """Properties that the commit sets on the table."""
    copies: dict[str, DataFile] = field(default_factory=dict)
    """See :meth:`Copies.known`."""
    written: list[Place] = field(default_factory=list)
    """Files made for this plan: if it is not committed, nothing references them."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not self.removed and not self.added and not self.properties

    def discard(self, *, for_good: bool = True) -> None:
        """Delete what was made for the plan; the copies stay for a plan that follows, unless this is ``for_good``."""
        if for_good:
            made = {place.uri for place in self.written}
            for path in [path for path, file in self.copies.items() if file.file_path in made]:
                del self.copies[path]
        kept = {file.file_path for file in self.copies.values()}
        for place in self.written:
            if place.uri not in kept:
                place.delete_file()

    def split(self, table: Table, live: LiveFile, predicate: BooleanExpression, scope: str) -> None:
        """Replace a file that also holds other rows by one without the predicate's rows; leave it alone if it has none of these.

        Raises:
            PublishError: the rows that stay and those that go do not add up to the file's, or it is damaged. ``scope`` names those
                that go.
        """
        from pyiceberg.expressions import Not

        inside = read_file(table, live, predicate, ("resolution",)).num_rows
        if inside == 0:
            return
        require_intact(
            table,
            live,
            "It holds rows of several batches: delete them with another engine, such as whole days with Spark's DELETE FROM, and publish "
            "the batches of these days again with `rollups backfill FROM TO --force`",
        )
        kept = read_file(table, live, Not(predicate))
        total = count_live_rows(table, live)
        if kept.num_rows + inside != total:
            raise PublishError(
                f"{live.path} has {total} rows, but {inside} in {scope} and {kept.num_rows} outside; "
                "the table was left as it was. Look at the file, and rewrite it with another engine"
            )
        self.removed.append(live.task.file)
        self.write(table, kept)

    def write(self, table: Table, rows: pa.Table) -> None:
        """Add rows, in their order, as new files: one for each partition value."""
        import pyarrow.parquet as pq
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        from rollup_assets.iceberg.data_files import data_file

        for part in _by_partition(rows):
            place = self._new_file()
            with place.open_output() as stream:
                # The table's own schema, so that columns that others have added stay.
                pq.write_table(part.cast(schema_to_pyarrow(table.schema())), stream, compression="zstd", write_page_checksum=True)
            self.added.append(data_file(table, place.uri))

    def copy(self, table: Table, files: Mapping[str, str]) -> None:
        """Add byte-for-byte copies of files under new names, several at once; a name begins with the digest of the bytes.

        New names, because engines that expire snapshots by their delete entries would delete from disk a path that the table's snapshots
        both removed and added.

        Args:
            table: the one that gets them.
            files: path → digest; if that is empty, being unknown, the file is read twice.

        Raises:
            FileNotFoundError: a file is gone; its path is the error's ``filename``.
        """
        lacking = [path for path in files if path not in self.copies]
        with thread_pool(max(1, min(_COPIED_AT_ONCE, len(lacking))), "copies") as pool:
            made = pool.map(lambda path: self._copied(table, path, files[path]), lacking)
            self.copies.update(zip(lacking, made, strict=True))
        self.added += [self.copies[path] for path in files]

    def _copied(self, table: Table, path: str, digest: str) -> DataFile:
        from rollup_assets.iceberg.data_files import data_file

        # Another engine may have given it Hadoop's name for S3.
        source = self.folder.of_path(path_of(path))
        try:
            place = self._new_file(f"{digest or digest_of(source)}-")
            with source.open_input() as content, place.open_output() as stream:
                shutil.copyfileobj(content, stream, _COPIED_BYTES)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "is gone", path) from error
        return data_file(table, place.uri)

    def _new_file(self, prefix: str = "") -> Place:
        place = self.folder / f"{prefix}{uuid.uuid4().hex}.parquet"
        self.written.append(place)
        return place


def digest_of_copy(place: Place) -> str:
    """The digest in the name of a copy (:meth:`Plan.copy`), which may no longer be that of its bytes; empty for other files."""
    return place.name.rpartition("-")[0]


def _by_partition(rows: pa.Table) -> list[pa.Table]:
    """The rows split by partition value (resolution, day), since a data file has exactly one. Order within each is kept."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if rows.num_rows == 0:
        return []
    days = rows["logical_timestamp"].cast(pa.int64()).to_numpy() // _DAY_MICROSECONDS
    keys = pa.table({"resolution": rows["resolution"], "day": days})
    return [
        rows.filter(pc.and_(pc.equal(keys["resolution"], key["resolution"]), pc.equal(keys["day"], key["day"])))
        for key in keys.group_by(["resolution", "day"], use_threads=False).aggregate([]).to_pylist()
    ]
