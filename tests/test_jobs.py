"""Jobs on every scheduler: the same bytes, lost workers, and what a user reads when it fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dask.distributed
import pytest
import torch
from threadpoolctl import threadpool_info

from bench.cluster import cluster, killed, scheduler, until, wait_for_workers, worker
from cache.store.errors import InputError
from stages.running import jobs
from stages.running.jobs import run
from stages.settings.params import ComputeParams
from tests.conftest import REPOSITORY, Project, tree_bytes

ARTEFACTS = {
    "extract": Path("data/features.zarr"),
    "context": Path("data/context.zarr"),
    "graph": Path("data/graph.h5"),
    "segment": Path("data/segments.h5"),
}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def address(elsewhere: Path) -> Iterator[str]:
    """Of a scheduler with two workers that were started in another folder than the project's."""
    with cluster(elsewhere, 2) as found:
        yield found


def compute(scheduler: str, threads: int | None = None) -> ComputeParams:
    return ComputeParams(device="cpu", scheduler=scheduler, threads=threads)


def note_threads(name: str) -> None:
    """A job: what torch and every BLAS and OpenMP would use in this thread."""
    found = {library["num_threads"] for library in threadpool_info()} | {torch.get_num_threads()}
    Path("notes", name).write_text(f"{sorted(found)}")


def die() -> None:
    os._exit(1)


@pytest.mark.parametrize("name", ["sync", "threads", "tcp"])
def test_threads_are_set_where_jobs_run_and_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes").mkdir()
    before = (torch.get_num_threads(), [x["num_threads"] for x in threadpool_info()])
    three = compute(address if name == "tcp" else name, 3)
    run(note_threads, [(str(i),) for i in range(6)], three, "notes", "noting")
    assert {path.read_text() for path in Path("notes").iterdir()} == {"[3]"}
    assert before == (torch.get_num_threads(), [x["num_threads"] for x in threadpool_info()])


def test_every_scheduler_writes_the_same_bytes(project: Project, address: str) -> None:
    """Of all stages that run jobs, also by workers that were started in another folder."""
    project.set("compute.threads", 2)  # one thread: the next test
    project.set("graph.scope", "dataset")  # its jobs share an index, too
    project.set("graph.k", 4)
    project.ok("prepare", "extract", "context", "graph", "train", "segment")
    expected = {stage: tree_bytes(path) for stage, path in ARTEFACTS.items()}
    # A local cluster runs jobs as any other does and is slow to start: one stage will do.
    cases = [(name, stage) for name in ("threads", address) for stage in ARTEFACTS]
    for name, stage in [*cases, ("local", "graph")]:
        project.set("compute.scheduler", name)
        project.ok(stage)
        assert tree_bytes(ARTEFACTS[stage]) == expected[stage], (name, stage)


def test_a_stage_that_dvc_starts_runs_on_a_cluster(project: Project, address: str) -> None:
    """As `python -m stages.<stage>`, where a stage's functions belong to ``__main__``."""
    project.set("compute.threads", 1)
    project.ok("prepare", "extract", "context", "graph", "train", "segment")
    expected = tree_bytes(ARTEFACTS["segment"])
    project.set("compute.scheduler", address)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "stages.segment"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tree_bytes(ARTEFACTS["segment"]) == expected


def test_a_worker_that_is_killed_changes_nothing(
    project: Project, address: str, elsewhere: Path
) -> None:
    project.set("extract.train.window", 32)
    project.set("extract.train.stride", 16)
    project.shards(16)
    project.set("compute.threads", 1)
    project.ok("prepare", "extract")
    expected = tree_bytes(ARTEFACTS["extract"])
    shards = len(list(ARTEFACTS["extract"].glob("block_00/c/*")))
    project.set("compute.scheduler", address)
    finished = 0

    def some_finished() -> bool:
        nonlocal finished
        finished = len(list(Path("data/.work").glob("features.zarr-*/done/*.json")))
        return finished > 0

    with worker(elsewhere, address) as victim:
        wait_for_workers(address, 3)
        with killed(victim, some_finished):
            project.ok("extract")
        assert victim.wait() == -signal.SIGKILL
    assert 0 < finished < shards - 10
    assert tree_bytes(ARTEFACTS["extract"]) == expected


def test_a_cluster_without_workers_is_told_and_waited_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    elsewhere: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "PATIENCE", 0.1)
    Path("notes").mkdir()
    with scheduler(tmp_path) as address:
        job = ([("0",)], compute(address), "notes", "noting")
        running = threading.Thread(target=run, args=(note_threads, *job))
        running.start()
        time.sleep(1)
        with worker(elsewhere, address):
            running.join(60)
            assert Path("notes/0").exists() and not running.is_alive()
    told = capsys.readouterr().err
    assert f"the Dask scheduler {address} has no worker" in told
    assert f"start one with `dask worker {address}`" in told


def note_gpu(number: int) -> None:
    Path(f"notes/{number}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    time.sleep(0.3)


@pytest.mark.parametrize(("given", "expected"), [(None, {"0", "1"}), ("3,GPU-5,7", {"3", "GPU-5"})])
def test_local_workers_have_a_gpu_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: set[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes").mkdir()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    choices = ComputeParams(device="auto", scheduler="local", threads=None)
    run(note_gpu, [(number,) for number in range(6)], choices, ".", "noting")
    assert {path.read_text() for path in Path("notes").iterdir()} == expected
    assert len(list(Path("notes").iterdir())) == 6


def test_a_scheduler_that_goes_is_named(tmp_path: Path) -> None:
    with scheduler(tmp_path) as address:
        job = ([("0",)], compute(address), ".", "noting")
        caught: list[InputError] = []

        def runs() -> None:
            with pytest.raises(InputError) as error:
                run(note_threads, *job)
            caught.append(error.value)

        running = threading.Thread(target=runs)
        running.start()
        time.sleep(1)
    running.join(60)
    assert f"({address}) must live until the last job" in str(caught[0])


def test_a_scheduler_without_the_project_is_named() -> None:
    text = "(tcp://x:1) and its workers must be able to import this project"
    with pytest.raises(InputError, match=re.escape(text)), jobs._explained("tcp://x:1"):
        raise RuntimeError("Error during deserialization of the task graph. This frequently")


def test_a_scheduler_that_does_not_answer_is_named(project: Project) -> None:
    project.set("compute.scheduler", "tcp://127.0.0.1:9")
    project.ok("prepare")
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        project.fails(
            "extract",
            "tcp://127.0.0.1:9 must be the address of a running Dask scheduler",
            "compute.scheduler",
            "start one with `dask scheduler`",
        )


def test_a_job_that_kills_its_workers_ends_the_run(tmp_path: Path) -> None:
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        pytest.raises(InputError, match=r"one job killed 1 of them.*--memory-limit"),
    ):
        run(die, [()], compute("local"), tmp_path, "dying")


def test_a_worker_with_another_version_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(jobs, "_CODE", "another")  # here, not in the workers that run
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="must run the same version of this project and of torch"):
        run(note_threads, [("0",)], compute(address), ".", "noting")
    assert not Path("notes/0").exists()


def test_a_worker_that_does_not_see_the_folder_is_named(tmp_path: Path) -> None:
    home, text = str(tmp_path), r"must see the project's folder .*\(with data/.work/x in it\)"
    with pytest.raises(InputError, match=text):
        jobs._visit(jobs._CODE, home, "data/.work/x", None, note_threads, "0")


def test_two_projects_share_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative: a job for another folder waits until this one's job is done."""
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    arrived, leave = threading.Event(), threading.Event()

    def stay() -> None:
        arrived.set()
        assert leave.wait(10)
        Path("stayed").touch()

    first = threading.Thread(
        target=jobs._visit, args=(jobs._CODE, str(folders[0]), ".", None, stay)
    )
    touch = Path("touched").touch
    others = [
        threading.Thread(target=jobs._visit, args=(jobs._CODE, str(folder), ".", None, touch))
        for folder in reversed(folders)
    ]
    first.start()
    arrived.wait(10)
    for thread in others:
        thread.start()
    until((folders[0] / "touched").exists, 10)  # the same folder need not wait
    assert not (folders[1] / "touched").exists()
    leave.set()
    for thread in (first, *others):
        thread.join(10)
    assert (folders[0] / "stayed").exists() and (folders[1] / "touched").exists()
