"""Whatever happens in whatever order, a publish loses nothing, repeats nothing and ends; and each safeguard of the protocol is needed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from rollup_assets.iceberg import protocol
from rollup_assets.iceberg.protocol import Action, Outcome, State
from rollup_assets_tests.iceberg.protocol_model import Found, Rules, search, start


def explored(publishers: tuple[int, int], rules: Rules, *, compacted: bool = True, empty: tuple[int, ...] = ()) -> Found:
    found = search(start(publishers, compacted=compacted, empty=empty), rules)
    print(f"\n{found}")  # noqa: T201
    return found


def test_every_action_goes_on_from_some_outcome_and_refuses_the_others() -> None:
    going_on = dict.fromkeys(Action, 0)
    for action, outcome in itertools.product(Action, Outcome):
        state = State(action, most_tries=3)
        try:
            following = protocol.observe(state, outcome)
        except ValueError:
            continue
        going_on[action] += 1
        assert following != state
    assert {action for action, ways in going_on.items() if not ways} == {Action.END, Action.GIVE_UP}
    assert all(State(action, 3).has_ended == (not ways) for action, ways in going_on.items())


def test_no_more_tries_than_are_allowed() -> None:
    state = protocol.begin(3, table_is_known=True)
    seen = [state.action]
    answers = {Action.PLAN: Outcome.NEEDED, Action.ASK_LOCK: Outcome.HELD, Action.HOLD_LOCK: Outcome.HELD, Action.LOAD: Outcome.ABSENT}
    answers |= {Action.COMMIT: Outcome.FAILED, Action.LOOK: Outcome.ABSENT}
    while not state.has_ended:
        state = protocol.observe(state, answers[state.action])
        seen.append(state.action)
    assert seen.count(Action.COMMIT) == seen.count(Action.PLAN) == 3
    assert state == State(Action.GIVE_UP, most_tries=3, tries=3)


@pytest.mark.scenario("P1", "P2", "P7", "C1")
@pytest.mark.parametrize("publishers", [(0, 0), (0, 1)])
def test_two_publishers_under_the_lock_with_two_faults(publishers: tuple[int, int]) -> None:
    found = explored(publishers, Rules(faults=2, takes_turns=True))
    assert found.broken is None, found
    assert found.states > 10_000
    assert found.results["published"] > 500


@pytest.mark.scenario("P1", "P2", "C1")
@pytest.mark.parametrize("publishers", [(0, 0), (0, 1)])
def test_two_publishers_without_a_lock_with_a_fault(publishers: tuple[int, int]) -> None:
    """Correctness does not rest on the lock: everything holds without it, but that nobody has to plan twice."""
    found = explored(publishers, Rules(faults=1, has_lock=False))
    assert found.broken is None, found
    assert found.states > 3_000


@pytest.mark.scenario("P1", "P2", "P7", "C1")
@pytest.mark.parametrize("empty", [(1, 3), (2,), (2, 3)])
@pytest.mark.parametrize("rules", [Rules(faults=2, takes_turns=True), Rules(faults=1, has_lock=False)], ids=["lock", "no lock"])
def test_two_publishers_of_a_batch_that_becomes_empty(rules: Rules, empty: tuple[int, ...]) -> None:
    """An empty publish makes no snapshot where there are no rows, so that an older commit meets none: its publisher looks again."""
    found = explored((0, 0), rules, empty=empty)
    assert found.broken is None, found
    assert found.states > 2_000
    assert found.results["published"] > 50


@pytest.mark.thorough
@pytest.mark.scenario("P1", "P2", "P7", "C1")
@pytest.mark.parametrize("compacted", [True, False])
@pytest.mark.parametrize("publishers", [(0, 0), (0, 1)])
@pytest.mark.parametrize("rules", [Rules(faults=3, takes_turns=True), Rules(faults=2, has_lock=False)], ids=["lock", "no lock"])
def test_two_publishers_with_more_faults(publishers: tuple[int, int], rules: Rules, *, compacted: bool) -> None:
    found = explored(publishers, rules, compacted=compacted)
    assert found.broken is None, found
    assert found.states > 50_000


# The search finds what is wrong: a mutation each.


def sent_again(state: State, outcome: Outcome) -> State:
    """A commit that was not acknowledged, and is not seen in the table, is sent again as it was."""
    if state.action is Action.LOOK and outcome is Outcome.ABSENT and state.tries + 1 < state.most_tries:
        return replace(state, action=Action.COMMIT, tries=state.tries + 1)
    return protocol.observe(state, outcome)


def discarded_after_a_refusal(state: State, outcome: Outcome) -> State:
    """Files that were written for a commit are deleted when it is not seen in the table."""
    if state.action is Action.LOOK and outcome is Outcome.ABSENT:
        return replace(state, action=Action.DISCARD)
    return protocol.observe(state, outcome)


def never_content(state: State, outcome: Outcome) -> State:
    """What was verified is looked at anew."""
    return replace(state, action=Action.HOLD_LOCK) if outcome is Outcome.VERIFIED else protocol.observe(state, outcome)


MUTATIONS = {
    "the ancestry is not looked at": (Rules(looks_up=False), (0, 1), "says that nothing was published, and its snapshot is in the table"),
    "commits are not validated": (Rules(faults=0, has_lock=False, validates=False), (0, 0), "batch 0 has 2 live results: [2, 2]"),
    "the digest is not checked again": (Rules(checks_digest=False), (0, 0), "was not current when checked"),
    "a commit is sent again blindly": (Rules(has_lock=False, observe=sent_again), (0, 0), "halts: its snapshot holds [0, 2]"),
    "what was sent is deleted": (Rules(observe=discarded_after_a_refusal), (0, 1), "the table names a file that was deleted"),
    "a receipt is trusted blindly": (Rules(compares_rows=False), (0, 0), "is in the table, which holds [0, 2]"),
    "nobody looks again after a commit": (
        Rules(faults=1, has_lock=False, looks_again=False),
        (0, 0),
        "is of generation 2, 3 was acknowledged",
    ),
    "nobody is ever content": (Rules(faults=0, observe=never_content, reruns=False), (0, 1), "it may go on for ever"),
    "the lock is not taken": (Rules(faults=0, has_lock=False, takes_turns=True), (0, 1), "has to plan again although nothing is wrong"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_without_a_safeguard_the_search_finds_what_goes_wrong(mutation: str) -> None:
    """The shortest way there is printed (`pytest -s`)."""
    rules, publishers, broken = MUTATIONS[mutation]
    compacted = mutation != "commits are not validated"
    found = explored(publishers, rules, compacted=compacted, empty=() if rules.looks_again else (1, 3))
    assert found.broken is not None, f"{mutation}: nothing is found in {found.states} states"
    assert broken in found.broken
    assert 0 < len(found.trace) < 30
