"""Parts of an HDF5 file made by jobs, those that a former run has finished left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cache import parts
from cache.jobs import run
from cache.params import ComputeParams


def fill(
    function: Callable[..., Any],
    job: Any,
    wanted: Mapping[str, tuple],
    compute: ComputeParams,
    description: str,
) -> list[str]:
    """Make the parts that are not finished; the names of all that are wanted.

    Args:
        function: ``function(job, name, *arguments)`` makes one part.
        job: what all parts need; its ``work`` is the folder that they are written to.
        wanted: the other arguments of each part, by its name.
        compute, description: as `cache.jobs.run` takes them.
    """
    jobs = [
        (job, name, *arguments)
        for name, arguments in wanted.items()
        if not parts.finished(job.work, name)
    ]
    if len(jobs) < len(wanted):
        print(f"resumed: {len(wanted) - len(jobs)} of {len(wanted)} parts were finished")
    run(function, jobs, compute, job.work, description, "part")
    return list(wanted)
