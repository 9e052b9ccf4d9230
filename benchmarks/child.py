"""One process of the benchmark: prepares a site, runs one contender, or checks outputs.

Started by ``benchmarks.runner``; answers in a JSON file.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import Stopwatch, cpu_seconds, peak_bytes_of_tree, use_cores


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job."""
    use_cores(job["threads"])
    from benchmarks.sites import Site

    full, small = Site(Path(job["full"])), Site(Path(job["small"]))
    if job["do"] == "prepare":
        from benchmarks import data, ours

        for site, rows in ((full, job["rows"]), (small, job["small_rows"])):
            data.generate(site, rows, job["shape"])
            (ours.prepare_before if job["only_before"] else ours.prepare)(site, job["threads"])
            if job["for_spark"]:
                from benchmarks.peers import spark

                spark.copy_for_spark(site, site.sorted_files)
        return {}
    if job["do"] == "check":
        from benchmarks import check

        return check.check(full, job["contender"])
    from benchmarks.contenders import Contender, reset, run
    from benchmarks.tasks import WARM

    contender = Contender(**job["contender"])
    if contender.start == WARM:
        run(contender, small, job["threads"], Stopwatch())
        for _ in range(job["whole_warm_ups"]):
            run(contender, full, job["threads"], Stopwatch())
            reset(contender, full)
            os.sync()
    watch = Stopwatch()
    details = run(contender, full, job["threads"], watch)
    return {"wall": watch.wall, "cpu": watch.cpu, "tree_cpu": cpu_seconds(), "peak_bytes": peak_bytes_of_tree(), **details}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    Path(job["answer"]).write_text(json.dumps(main(job)))
