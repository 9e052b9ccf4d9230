"""The code location: what ``dg`` and Dagster's servers load.

Loading it reads the settings and nothing else: no data, no server, and none of the heavy libraries that the steps need.
"""

from __future__ import annotations

from rollup_assets.loading import quick_imports

with quick_imports():
    import dagster as dg

    from rollup_assets.defs.assets import all_assets
    from rollup_assets.defs.jobs import batches_job
    from rollup_assets.defs.report import Watcher
    from rollup_assets.defs.resources import resources
    from rollup_assets.defs.schedules import batches_schedule
    from rollup_assets.defs.sensors import raw_files_sensor
    from rollup_assets.settings import Settings, load_settings


def build_definitions(settings: Settings | None = None, *, watcher: Watcher | None = None) -> dg.Definitions:
    """The Dagster definitions of one rollup table.

    Args:
        settings: of the table; read from the environment and ``.env`` unless given.
        watcher: is told about progress when runs are executed in the caller's own process.

    Raises:
        SettingsError: a setting is malformed or contradicts another one.
    """
    settings = settings or load_settings()
    job = batches_job()
    return dg.Definitions(
        assets=all_assets(settings, watcher or Watcher()),
        jobs=[job],
        schedules=[batches_schedule(job)],
        sensors=[raw_files_sensor(settings, job)],
        resources=resources(settings),
        # One process per run: the kernels are loaded once, and the engine's threads are the only ones.
        executor=dg.in_process_executor,
    )


defs = build_definitions()
