"""Jobs of a stage with a progress bar, as the section `compute` of params.yaml says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from cache.store import jobs, parts
from cache.store.errors import InputError
from stages.params import ComputeParams
from stages.progress import track


def run(
    function: Callable[..., Any],
    wanted: Sequence[tuple],
    compute: ComputeParams,
    work: str | Path,
    description: str,
    unit: str = "shard",
    together: Iterator[Any] | None = None,
) -> None:
    """Run ``function(*job)`` for every job that is wanted; see `cache.store.jobs.run`."""
    if not wanted:
        return
    options = {"scheduler": compute.scheduler, "threads": compute.threads, "together": together}
    done = jobs.run(importable(function), wanted, work, **options)  # type: ignore[arg-type]
    try:
        for _ in track(done, description, len(wanted), unit):
            pass
    except jobs.ClusterError as error:
        raise InputError(
            f"{error} Or set compute.scheduler ({compute.scheduler}) to local, threads or sync."
        ) from error


def importable(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function by a name that workers can import.

    In a stage that was started as ``python -m stages.<stage>`` it belongs to ``__main__``, which
    is another program on a worker.
    """
    if function.__module__ != "__main__":
        return function
    return getattr(import_module(sys.modules["__main__"].__spec__.name), function.__name__)  # type: ignore[union-attr]


def run_parts(
    function: Callable[..., Any],
    job: Any,
    wanted: Mapping[str, tuple],
    compute: ComputeParams,
    description: str,
) -> list[str]:
    """Make the parts of an HDF5 file that are not finished; the names of all that are wanted.

    Args:
        function: ``function(job, name, *arguments)`` makes one part.
        job: what all parts need; its ``work`` is the folder that they are written to.
        wanted: the other arguments of each part, by its name.
    """
    missing = [
        (job, name, *arguments)
        for name, arguments in wanted.items()
        if not parts.finished(job.work, name)
    ]
    if len(missing) < len(wanted):
        print(f"resumed: {len(wanted) - len(missing)} of {len(wanted)} parts were finished")
    run(function, missing, compute, job.work, description, "part")
    return list(wanted)
