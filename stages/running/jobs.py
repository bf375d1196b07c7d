"""Jobs of a stage: here, in threads, in local processes, or on a Dask cluster.

A job is idempotent and owns what it writes (one shard, one part), so a job whose worker died is
simply run again. With the same number of CPU threads the bytes on disk are the same whatever the
scheduler: matrix products in float32 round differently with another number.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import as_completed as threads_completed
from contextlib import closing, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from cache.store import parts
from cache.store.artefact import file_hash, fingerprint
from cache.store.errors import InputError
from stages.running.progress import track
from stages.settings.params import ComputeParams

PATIENCE = 30  # seconds without any worker before the user is told


class ClusterError(InputError):
    """No Dask scheduler answers, or its workers die or do not see the project."""


def run(
    function: Callable[..., Any],
    wanted: Sequence[tuple],
    compute: ComputeParams,
    work: str | Path,
    description: str,
    unit: str = "shard",
    together: Iterator[Any] | None = None,
) -> None:
    """Call ``function(*job)`` for every job that is wanted, behind a progress bar.

    Args:
        function: a module-level function; its arguments are small (paths and numbers).
        compute: ``scheduler`` is ``sync``, ``threads``, ``local`` (Dask processes on this machine)
            or the address ``tcp://host:port`` of a Dask scheduler; ``threads`` are the CPU threads
            that torch, BLAS and FAISS use inside a job, None: what the environment gives.
        work: the folder that the jobs write to; workers on other machines must see it.
        description, unit: of the progress bar.
        together: does all the jobs in turn, each one's reading and writing beside the next one's
            computing, and yields after each; used by ``sync`` instead of single calls.

    Raises:
        ClusterError: no Dask scheduler answers, or its workers do not see the folder or die.
        Exception: what a job raised; finished jobs keep their results on disk.
    """
    if not wanted:
        return
    done = _done(importable(function), wanted, compute, work, together)
    try:
        for _ in track(done, description, len(wanted), unit):
            pass
    except ClusterError as error:
        raise InputError(
            f"{error} Or set compute.scheduler ({compute.scheduler}) to local, threads or sync."
        ) from error


def importable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Find the function under a name that workers can import.

    In a stage started as ``python -m stages.<stage>`` it belongs to ``__main__``, which is another
    program on a worker.
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
    """Make the parts of an HDF5 file that are not finished; give the names of all.

    Args:
        function: ``function(job, name, *arguments)`` makes one part.
        job: common arguments; its ``work`` is the folder that parts are written to.
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


def _done(
    function: Callable[..., Any],
    wanted: Sequence[tuple],
    compute: ComputeParams,
    work: str | Path,
    together: Iterator[Any] | None,
) -> Iterator[None]:
    """Run the jobs; yield after each, in the order of finishing."""
    with _cpu_threads(compute.threads):
        if compute.scheduler == "sync":
            done: Iterator[Any] = together or (function(*job) for job in wanted)
        elif compute.scheduler == "threads":
            done = _threads(function, wanted, compute.threads)
        else:
            place = (_CODE, os.getcwd(), str(work), compute.threads, function)
            gpus = visible_gpus() if compute.gpu and compute.scheduler == "local" else []
            done = _dask([(*place, *job) for job in wanted], compute.scheduler, gpus)
        with closing(done):  # type: ignore[type-var]
            for _ in done:
                yield


def _set_threads(count: int | None) -> Any:
    """Set the CPU threads of torch, BLAS and OpenMP; exit the result to undo BLAS and OpenMP.

    OpenMP's number belongs to the calling thread, so every thread that runs jobs calls this. torch
    holds a number of its own, and an MKL inside it that threadpoolctl does not see.
    """
    if count is None:
        return nullcontext()
    torch.set_num_threads(count)
    return threadpool_limits(count)


@contextmanager
def _cpu_threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        with _set_threads(count):
            yield
    finally:
        torch.set_num_threads(before)


def _threads(function: Callable[..., Any], jobs: Sequence[tuple], count: int | None) -> Iterator:
    with ThreadPoolExecutor(initializer=_set_threads, initargs=(count,)) as pool:
        futures: list[Future] = [pool.submit(function, *job) for job in jobs]
        try:
            for future in threads_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _dask(jobs: Sequence[tuple], scheduler: str, gpus: Sequence[str]) -> Iterator:
    from dask.distributed import as_completed  # slow to import, needed only here

    with _client(scheduler, gpus) as client, _explained(scheduler), _watched(client):
        futures = [client.submit(_visit, *job, pure=False, retries=2) for job in jobs]
        for future in as_completed(futures):
            yield future.result()


def visible_gpus() -> list[str]:
    """Name the GPUs that torch finds, as CUDA_VISIBLE_DEVICES names them."""
    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[:count] if given else [str(number) for number in range(count)]


@contextmanager
def _client(scheduler: str, gpus: Sequence[str]) -> Iterator[Any]:
    """Connect to a scheduler; local workers have a GPU each, or without any all cores."""
    from dask.distributed import Client, Nanny, Scheduler, SpecCluster

    ports = {"dashboard_address": ":0"}
    options: dict[str, Any] = ports if scheduler == "local" else {"address": scheduler}
    if gpus:
        workers = {
            gpu: {"cls": Nanny, "options": {"nthreads": 1, "env": {"CUDA_VISIBLE_DEVICES": gpu}}}
            for gpu in gpus
        }
        hub = {"cls": Scheduler, "options": ports}
        with SpecCluster(workers, hub) as cluster, Client(cluster) as client:
            yield client
        return
    try:
        client = Client(**options)
    except OSError as error:
        raise ClusterError(
            f"{scheduler} must be the address of a running Dask scheduler, which does not answer "
            f"({error}): start one with `dask scheduler` or correct the address."
        ) from error
    with client:
        yield client


@contextmanager
def _explained(scheduler: str) -> Iterator[None]:
    """Turn errors of the cluster into `ClusterError`s that name a way out."""
    from distributed.scheduler import KilledWorker

    try:
        yield
    except KilledWorker as error:
        raise ClusterError(
            f"a job must not kill its worker, but one job killed {error.allowed_failures + 1} "
            "of them, most likely for lack of memory: give each worker more (`dask worker "
            "--memory-limit`), or make batches and groups smaller. Finished parts are kept."
        ) from error
    except CancelledError as error:
        logging.disable()  # Dask logs at length how it fails to close what is gone
        raise ClusterError(
            f"the Dask scheduler ({scheduler}) must live until the last job, but it is gone. "
            "Finished parts are kept: start it and its workers and run the same command again."
        ) from error
    except RuntimeError as error:
        if "deserialization of the task graph" not in str(error):
            raise
        raise ClusterError(
            f"the Dask scheduler ({scheduler}) and its workers must be able to import this "
            "project, but the scheduler cannot: install it where they start (`pip install -e .`) "
            "or set PYTHONPATH to its folder there."
        ) from error


@contextmanager
def _watched(client: Any) -> Iterator[None]:
    """Tell the user while the cluster has no worker, because its jobs wait."""
    over, address = threading.Event(), client.scheduler.address

    def watch() -> None:
        while not over.wait(PATIENCE):
            if client.status == "running" and not client.scheduler_info()["workers"]:
                print(
                    f"the Dask scheduler {address} has no worker, so the jobs wait: start "
                    f"one with `dask worker {address}` (it ends at once where this project is not "
                    "installed).",
                    file=sys.stderr,
                )

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


class _Folder:
    """The current folder of a worker, which all its threads share: one at a time.

    Jobs hold paths as the user wrote them, from the folder of the command. A job for another
    folder, of another project on the same cluster, waits until the folder is free.
    """

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._folder = os.getcwd()
        self._jobs = 0

    @contextmanager
    def entered(self, folder: str) -> Iterator[None]:
        with self._change:
            self._change.wait_for(lambda: not self._jobs or self._folder == folder)
            os.chdir(folder)
            self._folder = folder
            self._jobs += 1
        try:
            yield
        finally:
            with self._change:
                self._jobs -= 1
                self._change.notify_all()


_CURRENT = _Folder()
_OWN_THREADS = torch.get_num_threads()


def _digest_of_code() -> str:
    """Make a fingerprint of the sources of this project and of the version of torch."""
    root = Path(__file__).parents[1]
    layers = ("cache", "pipeline", "stages")
    files = sorted(path for layer in layers for path in (root / layer).rglob("*.py"))
    return fingerprint(torch.__version__, [(str(f.relative_to(root)), file_hash(f)) for f in files])


_CODE = _digest_of_code()  # as the process began, for it keeps what it has imported


def _visit(
    code: str, home: str, work: str, threads: int | None, function: Callable[..., Any], *job: Any
) -> None:
    """Run one job on a worker, in the folder in which the stage was started."""
    if code != _CODE:
        raise ClusterError(
            "every worker must run the same version of this project and of torch as the command, "
            f"found another on {socket.gethostname()} ({Path(__file__).parents[1]}): update it "
            "there and start the worker again."
        )
    if not (Path(home) / work).is_dir():
        raise ClusterError(
            f"every worker must see the project's folder at the same path, but {home} (with {work} "
            f"in it) is not on {socket.gethostname()}: keep the project on a file system that all "
            "machines share."
        )
    # A worker lives on after a run: without a number, not the last run's but its own counts.
    _set_threads(threads or _OWN_THREADS)
    with _CURRENT.entered(home):
        function(*job)
