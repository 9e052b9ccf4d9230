"""The decisions of a publish: what to do next, given what has happened so far.

Pure, so that every order of events can be gone through: :func:`rollup_assets.iceberg.commit.bring_about` does the actions on a real
table, a search over all states does them on a small model of one. How an action is done stays out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace


class Action(enum.Enum):
    """What a publisher does next. An action may also find that the publish must not go on, and end it with an error."""

    HOLD_LOCK = "make sure of the lock"
    LOAD = "load the table and look for an own commit in it"
    PLAN = "check that the staged files are still the ones to publish, and plan"
    ASK_LOCK = "ask whether the lock is still held"
    DISCARD = "delete the files written for the plan"
    COMMIT = "commit the plan"
    LOOK = "look in the table for the commit"
    VERIFY = "compare the table with what was staged"
    END = "report what was published"
    GIVE_UP = "report that nothing can be published"


class Outcome(enum.Enum):
    """How an action went."""

    HELD = "the lock is held"
    LOST = "the lock is lost, or may be"
    FOUND = "the table has a snapshot of this publish"
    ABSENT = "the table has no snapshot of this publish"
    EMPTY = "the table is as it should be"
    NEEDED = "the table has to be changed"
    DISCARDED = "the files are deleted"
    ACKNOWLEDGED = "the catalog says that it is committed"
    FAILED = "there is no answer, or one that means no; it may be wrong"
    VERIFIED = "the table holds what was staged"


@dataclass(frozen=True, slots=True)
class State:
    """How far a publisher is. ``tries`` counts the failed tries; ``changed``: whether this publish made a snapshot."""

    action: Action
    most_tries: int
    tries: int = 0
    changed: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing left to do but to report."""
        return self.action in (Action.END, Action.GIVE_UP)


def trusts_receipt(*, receipt_holds: bool, rows_agree: Callable[[], bool], force: bool) -> bool:
    """Whether there is nothing to publish: the receipt holds, and (checked only then) the table has as many rows as the staged files.

    A receipt holds if it is of these files, they are wanted, and the table still comes from the snapshot that the receipt names.
    """
    return receipt_holds and not force and rows_agree()


def keeps_receipt(*, receipt_holds: bool, changed: bool) -> bool:
    """Whether the existing receipt is still true after a publish: it held before, and nothing has changed since."""
    return receipt_holds and not changed


def publishes_again(*, changed: bool, is_newest: Callable[[], bool]) -> bool:
    """Whether newer files than those just published are staged; only a publish that changed something checks this.

    Without a lock, another publisher may have acknowledged the newer files before our commit. If both the newer staged rollups and
    the table's range were empty, it made no snapshot for our commit to conflict with.
    """
    return changed and not is_newest()


def begin(most_tries: int, *, table_is_known: bool) -> State:
    """The first state; ``table_is_known``: the table was loaded just now, under the lock."""
    return State(Action.PLAN if table_is_known else Action.HOLD_LOCK, most_tries)


def observe(state: State, outcome: Outcome) -> State:
    """The state that follows when the action of ``state`` ends with ``outcome``.

    Raises:
        ValueError: that action cannot end with that outcome.
    """
    match state.action, outcome:
        case (Action.HOLD_LOCK, Outcome.HELD):
            return replace(state, action=Action.LOAD)
        case (Action.LOAD, Outcome.ABSENT):
            return replace(state, action=Action.PLAN)
        case (Action.PLAN, Outcome.NEEDED):
            return replace(state, action=Action.ASK_LOCK)
        case (Action.PLAN, Outcome.EMPTY):
            return replace(state, action=Action.VERIFY)
        case (Action.ASK_LOCK, Outcome.HELD):
            return replace(state, action=Action.COMMIT)
        case (Action.ASK_LOCK, Outcome.LOST):
            # Only files of a plan that was never sent are deleted. Once a plan was sent, only the table knows what became of it, and
            # not even the table if snapshots expire quickly.
            return replace(state, action=Action.DISCARD)
        case (Action.COMMIT, Outcome.FAILED):
            # The commit may have been applied: its answer may be lost, or a retry reported it as a conflict with itself.
            return replace(state, action=Action.LOOK)
        case (Action.COMMIT, Outcome.ACKNOWLEDGED) | (Action.LOAD | Action.LOOK, Outcome.FOUND):
            # Found by LOAD: a commit of unknown outcome that became visible only now.
            return replace(state, action=Action.VERIFY, changed=True)
        case (
            (Action.HOLD_LOCK | Action.LOAD | Action.LOOK, Outcome.FAILED)
            | (Action.LOOK, Outcome.ABSENT)
            | (
                Action.DISCARD,
                Outcome.DISCARDED,
            )
        ):
            return _again(state)
        case (Action.VERIFY, Outcome.VERIFIED):
            return replace(state, action=Action.END)
        case _:
            raise ValueError(f"{state.action} cannot end with {outcome}")


def _again(state: State) -> State:
    """Look at the table anew and plan anew: a plan is never sent twice."""
    tries = state.tries + 1
    return replace(state, action=Action.HOLD_LOCK if tries < state.most_tries else Action.GIVE_UP, tries=tries)
