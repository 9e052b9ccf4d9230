"""The parameters of manifests: which settings determine the output, and which of them have changed since, named as in the settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from rollup_assets.batches import Batch
from rollup_assets.settings import Settings
from rollup_assets.storage.raw_limits import DEFAULT_LIMITS
from rollup_assets.units import format_duration

PARQUET_ENCODING = "parquet_encoding"
RAW_LIMITS = "raw_limits"
LATENESS = "raw_lateness"
START = "start"
OF_TABLE = ("shards", "resolutions", "batch")
"""Parameters that a migration of the table changes."""
_VALUE_TYPE = "value_type"
_SETTINGS_OF_LIMITS = {"rows": "RAW_FILE_ROWS", "group_bytes": "RAW_GROUP_SIZE", "name_bytes": "RAW_NAME_SIZE"}
_DURATIONS = ("batch", "lookback", "raw_future")


def content_parameters(settings: Settings, batch: Batch) -> dict[str, object]:
    """The settings that decide which rows staged files of a batch hold."""
    # Defaults are left out, so that what was staged before these settings existed stays current.
    limits = None if settings.raw_limits == DEFAULT_LIMITS else dataclasses.asdict(settings.raw_limits)
    first = settings.calendar.first
    chosen = {
        RAW_LIMITS: limits,
        LATENESS: settings.raw_lateness or None,
        "raw_future": settings.raw_future,
        # Late rows from before the start are quarantined in this batch; with an earlier start, another batch would stage them.
        START: first.key if batch.start - settings.raw_lateness * settings.batch < first.start else None,
    }
    return {**_table_parameters(settings), **{name: value for name, value in chosen.items() if value is not None}}


def shared_parameters(settings: Settings, batch: Batch) -> dict[str, object]:
    """The :func:`content_parameters` that batches must have in common to be rolled up together."""
    return without_raw_limits(content_parameters(settings, batch))


def without_raw_limits(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without the limits of raw files, which only decide what a batch quarantines of its own files."""
    return {name: value for name, value in parameters.items() if name != RAW_LIMITS}


def rollup_parameters(settings: Settings) -> dict[str, object]:
    """The settings that, for the same staged input, decide every byte of the rollups' files."""
    return {**_table_parameters(settings), PARQUET_ENCODING: settings.parquet_encoding}


def _table_parameters(settings: Settings) -> dict[str, object]:
    return {
        "batch": settings.batch,
        "lookback": settings.lookback,
        "resolutions": list(settings.resolutions),
        "shards": settings.shards,
        _VALUE_TYPE: settings.value_type,
    }


def are_for_another_table(settings: Settings, parameters: Mapping[str, Any]) -> bool:
    """Whether a manifest's parameters are those of another table than these settings', by what a table is made for."""
    wanted = _table_parameters(settings)
    return any(parameters.get(name) != wanted[name] for name in (*OF_TABLE, _VALUE_TYPE))


def changed_parameters(wanted: Mapping[str, object], found: Mapping[str, Any]) -> Iterator[tuple[str, object, Any]]:
    """(name, as it is now, as it was then) of each parameter of a manifest that has changed; None: not set."""
    for name in dict.fromkeys((*wanted, *found)):
        if wanted.get(name) != found.get(name):
            yield name, wanted.get(name), found.get(name)


def changed_settings(wanted: Mapping[str, object], found: Mapping[str, Any]) -> list[str]:
    """``ROLLUP_LOOKBACK (now 30m, then 1h)`` for each setting behind :func:`changed_parameters`, with values written as in the settings."""
    changed: list[str] = []
    for name, now, then in changed_parameters(wanted, found):
        if name == RAW_LIMITS:
            defaults = dataclasses.asdict(DEFAULT_LIMITS)
            allowed, before = ({**defaults, **limits} if isinstance(limits, Mapping) else defaults for limits in (now, then))
            limits = changed_parameters(allowed, before)
            changed += [f"ROLLUP_{_SETTINGS_OF_LIMITS[limit]} (now {today}, then {once})" for limit, today, once in limits]
        elif name == START:
            # It is noted only if it matters, which depends on the lateness: with another lateness, its absence means nothing.
            if wanted.get(LATENESS) == found.get(LATENESS):
                changed.append(f"ROLLUP_START (now {now or 'another'}, then {then or 'another, or not noted'})")
        else:
            changed.append(f"ROLLUP_{name.upper()} (now {_as_setting(name, now)}, then {_as_setting(name, then)})")
    return changed


def _as_setting(name: str, value: Any) -> str:
    if value is None:
        return "0" if name == LATENESS else "not set"
    if name == "resolutions":
        return ",".join(format_duration(resolution) for resolution in value)
    return format_duration(value) if name in _DURATIONS else str(value)
