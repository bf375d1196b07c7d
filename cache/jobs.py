"""Running independent jobs: here, in threads, in local processes, or on a Dask cluster.

A job is idempotent and owns what it writes (one shard, one part), so the bytes on disk are the
same whatever the scheduler, and a job whose worker died is simply run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import as_completed as threads_completed
from contextlib import closing
from typing import Any

from cache.progress import track


def run(
    function: Callable[..., Any],
    jobs: Sequence[tuple],
    scheduler: str,
    description: str,
    unit: str = "shard",
) -> None:
    """Call ``function(*job)`` for every job and show the progress.

    Args:
        function: a module-level function; its arguments are small (paths and numbers).
        scheduler: ``sync``, ``threads``, ``local`` (Dask processes on this machine) or the address
            ``tcp://host:port`` of a Dask scheduler.

    Raises:
        Exception: what a job raised; finished jobs keep their results on disk.
    """
    if scheduler == "sync":
        done: Iterator[Any] = (function(*job) for job in jobs)
    elif scheduler == "threads":
        done = _threads(function, jobs)
    else:
        done = _dask(function, jobs, None if scheduler == "local" else scheduler)
    with closing(done):  # type: ignore[type-var]
        for _ in track(done, description, len(jobs), unit):
            pass


def _threads(function: Callable[..., Any], jobs: Sequence[tuple]) -> Iterator[Any]:
    with ThreadPoolExecutor() as pool:
        futures: list[Future] = [pool.submit(function, *job) for job in jobs]
        try:
            for future in threads_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _dask(function: Callable[..., Any], jobs: Sequence[tuple], address: str | None) -> Iterator:
    from dask.distributed import Client, as_completed  # slow to import, needed only here

    with Client(address) as client:
        futures = [client.submit(function, *job, pure=False, retries=2) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
