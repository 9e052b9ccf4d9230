"""How checks run: side by side, in chains, within a time limit, and whatever they raise."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from rollup_assets.doctor import examination
from rollup_assets.doctor.examination import examine
from rollup_assets.doctor.findings import Chain, Check, Found, told
from rollup_assets.errors import CatalogError, SettingsError
from rollup_assets.settings import Settings, load_settings


def good(_: Settings) -> Found:
    return Found("good")


def bad(_: Settings) -> Found:
    raise CatalogError("it is down; start it")


def broken(_: Settings) -> Found:
    raise ZeroDivisionError("oh\nno")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> object:
    """``only(chain, …)``: no other chains."""

    def use(*chains: Chain) -> None:
        for module in (examination.machine, examination.places, examination.catalog, examination.records):
            monkeypatch.setattr(module, "chains", list)
        monkeypatch.setattr(examination.spark, "chains", lambda _: list(chains))

    return use


def chain(*looks: object) -> Chain:
    return Chain(tuple(Check(look.__name__, look, "ROLLUP_X") for look in looks))  # type: ignore[arg-type,attr-defined]


def test_a_chain_ends_with_its_first_failure_and_the_others_do_not(only: object, tmp_path: Path) -> None:
    only(chain(good, bad, good), chain(broken), chain(good))  # type: ignore[operator]
    found = examine(lambda: load_settings(home=str(tmp_path)), seconds=60)
    assert [(one.name, one.state, one.found, one.remedy) for one in found.findings[1:]] == [
        ("good", "ok", "good", ""),
        ("bad", "failed", "it is down", "start it"),
        ("good", "skipped", "bad failed", ""),
        ("broken", "failed", "ZeroDivisionError: oh", "look at ROLLUP_X"),
        ("good", "ok", "good", ""),
    ]
    assert (found.healthy, found.silent) == (False, False)


def test_who_does_not_answer_is_given_up_and_named(only: object, tmp_path: Path) -> None:
    answer = threading.Event()

    def silent(_: Settings) -> Found:
        answer.wait(60)
        return Found("late")

    only(chain(good, silent, good), chain(silent), chain(good))  # type: ignore[operator]
    began = time.monotonic()
    try:
        found = examine(lambda: load_settings(home=str(tmp_path)), seconds=1)
    finally:
        answer.set()
    assert time.monotonic() - began < 30
    assert [(one.name, one.state) for one in found.findings[1:]] == [
        ("good", "ok"),
        ("silent", "failed"),
        ("good", "skipped"),
        ("silent", "failed"),
        ("good", "ok"),
    ]
    assert found.findings[2].found == "no answer within 1 s"
    assert "ROLLUP_X" in found.findings[2].remedy
    assert "--timeout" in found.findings[2].remedy
    assert found.findings[3].found == "silent did not answer"
    assert (found.healthy, found.silent) == (False, True)


def test_settings_that_do_not_load_are_a_finding() -> None:
    def load() -> Settings:
        raise SettingsError("ROLLUP_BATCH=7m: no; 1h; and ROLLUP_SHARDS=0: no")

    (only_one,) = examine(load).findings
    assert (only_one.name, only_one.state, only_one.found) == ("settings", "failed", "ROLLUP_BATCH=7m: no; 1h; and ROLLUP_SHARDS=0: no")


def test_a_sentence_without_a_remedy_stays_whole() -> None:
    assert told(CatalogError("it is down")) == Found("it is down", "failed")
    assert told(CatalogError("a (b; c); d")) == Found("a (b; c)", "failed", "d")
