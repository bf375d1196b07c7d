"""Stages on a Dask cluster: the same bytes, one worker against two, and one worker lost mid-run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import click

import stages
from bench.project import REPOSITORY, change_params, make_project
from bench.timing import Timing, machine, ratios, show, side_by_side
from cache.store.artefact import file_hash
from stages import extract

SHARD_PATCHES = 4800
OUTPUTS = {
    "extract": "features.zarr",
    "context": "context.zarr",
    "graph": "graph.h5",
    "segment": "segments.h5",
}
MARKERS = {
    "extract": "features.zarr-*/done/*.json",
    "context": "context.zarr-*/done/*.json",
    "graph": "graph.h5-*/part-*.h5",
    "segment": "segments.h5-*/part-*.h5",
}
ONE, LOST = "tcp, 1 worker", "tcp, 2 workers, 1 killed"
# Jobs enough that two workers share them evenly.
SETTINGS = (
    "graph.group_patches=4800",
    "train.epochs=1",
)


@click.command()
@click.option("--images", default=96, show_default=True, help="Training photos.")
@click.option("--height", default=240, show_default=True, help="Of a photo, in pixels.")
@click.option("--width", default=320, show_default=True, help="Of a photo, in pixels.")
@click.option(
    "--workers",
    type=click.IntRange(min=2),
    multiple=True,
    default=(2,),
    help="Of a cluster, beside one.",
)
@click.option(
    "--stage",
    "measured",
    type=click.Choice(list(OUTPUTS)),
    multiple=True,
    default=tuple(OUTPUTS),
    help="To measure, the others run once; repeatable, all four without it.",
)
@click.option("--repeats", default=5, show_default=True, help="Of every case, of every stage.")
@click.option("--threads", default=1, show_default=True, help="compute.threads of every job.")
@click.option("-S", "settings", multiple=True, help="Set a parameter: key=value, repeatable.")
def main(
    images: int,
    height: int,
    width: int,
    workers: tuple[int, ...],
    measured: tuple[str, ...],
    repeats: int,
    threads: int,
    settings: tuple[str, ...],
) -> None:
    """Run the stages that have jobs in this process, by one worker, by more, and with one killed.

    A real scheduler and real workers on loopback, one job each at a time; they are warm when the
    clock starts. Photos are drawn, a third as many in the validation split. SETTINGS hold too.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        project, elsewhere = folder / "project", folder / "elsewhere"
        elsewhere.mkdir()
        settings = (*SETTINGS, f"compute.threads={threads}", *settings)
        make_project(project, images, -(-images // 3), height, width, settings)
        stack.enter_context(chdir(project))
        addresses = {"sync": "sync"}
        for name, count in {ONE: 1, **{f"tcp, {n} workers": n for n in workers}}.items():
            addresses[name] = stack.enter_context(cluster(elsewhere, count))
        rows = []
        extract.SHARD_PATCHES = SHARD_PATCHES
        run_stage("prepare")
        for stage in ("extract", "context", "graph", "train", "segment"):
            click.echo(stage, err=True)
            if stage not in measured:
                run_stage(stage)
                continue
            for row in _measure(stage, addresses, repeats, elsewhere):
                click.echo(f"{row['case']}: {row['seconds']} s", err=True)  # a long run may be cut
                rows.append(row)
    facts = {"images": images, "size": f"{width}x{height}", "settings": list(settings)}
    show("cluster", {**facts, "repeats": repeats, **machine()}, rows)


def _measure(stage: str, addresses: dict[str, str], repeats: int, elsewhere: Path) -> list[dict]:
    """Seconds of a stage in every case, and whether each run wrote the bytes of the first."""
    output = Path("data") / OUTPUTS[stage]
    digests: dict[str, set[str]] = {name: set() for name in (*addresses, LOST)}

    def case(name: str) -> None:
        run_stage(stage, addresses[name])
        digests[name].add(digest(output))

    seconds = side_by_side({name: partial(case, name) for name in addresses}, repeats)
    seconds[LOST] = [_with_a_loss(stage, elsewhere)]
    digests[LOST].add(digest(output))
    return [
        {
            "stage": stage,
            "case": name,
            "seconds": Timing.of(taken),
            **({"speed-up over 1 worker": ratios(seconds[ONE], taken)} if name != LOST else {}),
            "bytes as sync": digests[name] == digests["sync"] and len(digests[name]) == 1,
        }
        for name, taken in seconds.items()
    ]


def _with_a_loss(stage: str, elsewhere: Path) -> float:
    """Seconds of a stage by two warm workers, one of them killed when the first part is there."""
    with cluster(elsewhere, 1) as address, worker(elsewhere, address) as victim:
        wait_for_workers(address, 2)
        run_stage(stage, address)
        with killed(victim, lambda: any(Path("data/.work").glob(MARKERS[stage]))):
            start = time.perf_counter()
            run_stage(stage, address)
            return time.perf_counter() - start


def run_stage(stage: str, scheduler: str = "sync") -> None:
    """Run one stage in this process and folder; what it prints is dropped."""
    params = Path("params.yaml")
    change_params(params, params, [f"compute.scheduler={scheduler}"])
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        stages.main([stage], standalone_mode=False)


def digest(path: Path) -> str:
    """One text for the names and the bytes of a file, or of all files below a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return "".join(f"{file}{file_hash(file)}" for file in files if file.is_file())


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[str]:
    """The address of a new scheduler with so many workers, connected."""
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(folder))
        for _ in range(workers):
            stack.enter_context(worker(folder, address))
        wait_for_workers(address, workers)
        yield address


@contextmanager
def scheduler(folder: Path) -> Iterator[str]:
    """A Dask scheduler on a free port of loopback; yields its address."""
    with scheduler_process(folder) as (address, _):
        yield address


@contextmanager
def scheduler_process(folder: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a Dask scheduler, and its process."""
    with tempfile.TemporaryDirectory() as temporary:
        told = Path(temporary) / "scheduler.json"
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", told]
        with _process(folder, "distributed.cli.dask_scheduler", *map(str, options)) as process:
            until(lambda: told.exists() and told.read_text().rstrip().endswith("}"))
            yield json.loads(told.read_text())["address"], process


@contextmanager
def worker(folder: Path, address: str, code: Path = REPOSITORY) -> Iterator[subprocess.Popen]:
    """A Dask worker that runs one job at a time and is not started again when it dies."""
    options = ["--no-nanny", "--no-dashboard", "--nthreads", "1"]
    with _process(folder, "distributed.cli.dask_worker", address, *options, code=code) as process:
        yield process


@contextmanager
def _process(folder: Path, *command: str, code: Path = REPOSITORY) -> Iterator[subprocess.Popen]:
    # One thread for OpenMP, as Dask's nanny gives its workers.
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=folder, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_workers(address: str, count: int) -> None:
    """Return when a scheduler has so many workers."""
    from dask.distributed import Client

    with Client(address) as client:
        client.wait_for_workers(count, timeout=60)


@contextmanager
def killed(process: subprocess.Popen, when: Callable[[], bool]) -> Iterator[None]:
    """Kill a process as soon as the condition holds, while the block runs.

    Raises:
        RuntimeError: the block has ended, and no kill has ended the process.
    """
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.002):
            if when():
                process.kill()
                process.wait(timeout=10)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        ended.set()
        killer.join()
    if process.poll() != -signal.SIGKILL:
        found = "alive" if process.returncode is None else f"ended with {process.returncode}"
        raise RuntimeError(
            f"the worker must be killed while the stage runs, found it {found}: give the stage "
            "more to do (--images)"
        )


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Return when the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited for {seconds} s")
        time.sleep(0.002)


if __name__ == "__main__":
    main()
