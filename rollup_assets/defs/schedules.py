"""The schedule, which runs each batch after it has ended. Stopped until someone starts it."""

from __future__ import annotations

from typing import Any

import dagster as dg


def batches_schedule(job: Any) -> Any:
    """One run for each batch, as soon as it has ended; its rollups read what earlier runs have staged.

    Missed ticks are not made up for here: runs of neighbouring batches could overtake each other, while the sensor asks in order.

    Untyped, since Dagster exports neither the class of unresolved jobs nor that of their schedules.
    """
    return dg.build_schedule_from_partitioned_job(
        job,
        name="batches_schedule",
        description=(
            "Stages, rolls up and publishes each batch after it has ended. Files that arrive later need another run. Batches that end "
            "while the schedule is stopped or Dagster's daemon is down are skipped, except the last one that ended while the daemon was "
            "down: raw_files_sensor makes them, or `rollups backfill FIRST LAST`; `rollups status` lists them."
        ),
        default_status=dg.DefaultScheduleStatus.STOPPED,
    )
