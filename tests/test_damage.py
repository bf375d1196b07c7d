"""Damage that no checksum of a library shows: a full disk, missing chunks, edited manifests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from cache.features import TILE_FIELDS
from cache.store import parts
from cache.store.errors import InputError
from tests.conftest import REPOSITORY, Project, tree_bytes


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB, where the tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


WRITE = """
import sys, numpy as np
from pathlib import Path
from cache.store import parts
from cache.store.errors import InputError
with parts.write_part(Path(sys.argv[1]), "a") as file:
    for i in range(8):
        parts.dataset(file, f"values{i}", np.arange(20_000, dtype=np.int64) + 1)
"""


def write(folder: Path) -> subprocess.CompletedProcess[str]:
    """Write a part of 1.3 MB in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", WRITE, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kilobytes", [40, 170, 300, 420, 800])
def test_a_part_on_a_full_disk_is_no_part(small_disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", small_disk], check=True)
    failed = write(small_disk)
    assert failed.returncode == 1 and "No space left" in failed.stderr, failed
    assert not parts.finished(small_disk, "a") and not list(small_disk.glob("part-*"))
    subprocess.run(["mount", "-o", "remount,size=10m", small_disk], check=True)
    assert write(small_disk).returncode == 0
    assert parts.finished(small_disk, "a")


def test_assembling_needs_room_for_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with parts.write_part(tmp_path, "a") as file:
        parts.dataset(file, "values", np.arange(100_000))
    usage = shutil.disk_usage(tmp_path)._replace(free=500_000)
    with monkeypatch.context() as patch:
        patch.setattr(parts.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OSError, match=r"2\.\d+ MB are needed in .*, 500 kB are free"):
            parts.assemble(tmp_path, ["a"], tmp_path / "out.h5", {})
    assert not (tmp_path / "out.h5").exists()
    parts.assemble(tmp_path, ["a"], tmp_path / "out.h5", {})
    assert (tmp_path / "out.h5").exists()


def test_a_part_with_a_missing_chunk_is_not_finished(tmp_path: Path) -> None:
    for name in ("whole", "torn"):
        with parts.write_part(tmp_path, name) as file:
            parts.dataset(file, "values", np.arange(100_000))
    with h5py.File(tmp_path / "part-torn.h5", "a") as file:
        shape, chunks = file["values"].shape, file["values"].chunks
        del file["values"]
        file.create_dataset("values", shape, "i8", chunks=chunks, fletcher32=True)[:10] = 1
    assert parts.finished(tmp_path, "whole")
    assert not parts.finished(tmp_path, "torn") and not (tmp_path / "part-torn.h5").exists()


@pytest.mark.parametrize("name", TILE_FIELDS.names)
def test_a_column_of_the_table_of_tiles_is_missed(project: Project, name: str) -> None:
    project.made("extract")
    chunks = Path(f"data/features.zarr/tiles/{name}/c")
    if not chunks.exists():
        pytest.skip("all zeros: Zarr writes no chunk of it, and reads what was there")
    shutil.rmtree(chunks)
    project.fails("context", "data/features.zarr is damaged", "delete", "dvc repro extract")


def test_a_flipped_bit_in_the_table_of_tiles_is_found(project: Project) -> None:
    project.made("extract")
    path = Path("data/features.zarr/tiles/start/c/0")
    whole = path.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        project.fails("context", "data/features.zarr", "dvc repro extract")


def test_a_damaged_table_in_the_work_folder_is_written_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cache import feature_writer

    project.shards(96)
    project.ok("prepare", "extract")
    expected = tree_bytes(Path("data/features.zarr"))
    shutil.rmtree("data/features.zarr")
    write_shard, calls = feature_writer.write_shard, []

    def stop(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("stopped")
        write_shard(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(feature_writer, "write_shard", stop)
        project.fails("extract", "stopped")
    (start,) = Path("data/.work").glob("features.zarr-*/features.zarr/tiles/start/c/0")
    start.unlink()
    assert "resumed" in project.run("extract").output
    assert tree_bytes(Path("data/features.zarr")) == expected


@pytest.mark.parametrize(
    ("folder", "key", "value", "stage"),
    [
        ("features.zarr", "mean", [0.0, 0.0, 0.0], "context"),
        ("features.zarr", "patch", 7, "context"),
        ("context.zarr", "levels", {}, "graph"),
        ("head", "backbone", {}, "segment"),
    ],
)
def test_an_edited_manifest_is_not_believed(
    project: Project, folder: str, key: str, value: object, stage: str
) -> None:
    project.made("train")
    path = Path("data", folder, "manifest.json")
    stored = json.loads(path.read_text())
    assert key in stored
    path.write_text(json.dumps({**stored, key: value}))
    project.fails(stage, f"data/{folder}/manifest.json is not as it was written", "run `")
    path.write_text(json.dumps({k: v for k, v in stored.items() if k != key}))
    project.fails(stage, "is not as it was written")


@pytest.mark.parametrize("name", ["a\rb.jpg", "a\nb.jpg", "\udcff.jpg"])
def test_names_that_break_lines_or_are_no_utf8_are_refused(project: Project, name: str) -> None:
    shutil.copy("photos/images/val/000.jpg", f"photos/images/val/{name}")
    found = project.fails("prepare", "names of images must be UTF-8 without control characters")
    assert repr(name)[1:-1] in found and len(found.splitlines()) == 1


def test_names_of_all_languages_are_taken(project: Project) -> None:
    for kind, ending in (("images", "jpg"), ("labels", "png")):
        Path(f"photos/{kind}/val/000.{ending}").rename(
            f"photos/{kind}/val/寫真, Bild\u202f1.{ending}"
        )
    project.ok("prepare", "extract")


def test_classes_that_are_no_utf8_are_named(project: Project) -> None:
    Path("photos/classes.txt").write_bytes("ciel\nprairie\nchauss\xe9e\nbox\n".encode("latin-1"))
    project.fails("prepare", "photos/classes.txt must be a text in UTF-8", "save it as UTF-8")


def test_a_terminated_stage_says_so_and_lets_go(project: Project) -> None:
    stop = "s.write_index = lambda *a: signal.raise_signal(15)"
    program = f"import signal, stages.prepare as s; {stop}"
    command = [sys.executable, "-c", f"{program}; s.program('prepare')"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    stopped = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert stopped.returncode == 143
    assert stopped.stderr.splitlines()[-1].startswith("stopped by SIGTERM.")
    assert "Traceback" not in stopped.stderr
    project.ok("prepare")


@pytest.mark.parametrize("compress", [False, True])
def test_a_chunk_that_became_zeros_is_found(tmp_path: Path, compress: bool) -> None:
    """Its Fletcher-32 became zero too, which is that of zeros."""
    with parts.write_part(tmp_path, "a") as file:
        parts.dataset(file, "values", np.arange(1000), compress=compress)
    parts.assemble(tmp_path, ["a"], tmp_path / "out.h5", {})
    with h5py.File(tmp_path / "out.h5") as file:
        chunk = file["values"].id.get_chunk_info(0)
        assert chunk.filter_mask == 0
    with open(tmp_path / "out.h5", "r+b") as stored:
        stored.seek(chunk.byte_offset)
        stored.write(bytes(chunk.size))
    file, _ = parts.open_complete(tmp_path / "out.h5", "graph")
    with file, pytest.raises(InputError, match="values is damaged"):
        parts.read(file["values"])


def test_an_assembled_file_has_no_heap_of_texts(tmp_path: Path) -> None:
    """HDF5 never ends reading a text of free length from a global heap that became zeros."""
    with parts.write_part(tmp_path, "a") as file:
        parts.dataset(file, "values", np.arange(1000))
    parts.assemble(tmp_path, ["a"], tmp_path / "out.h5", {"images": ["x" * 64] * 2000})
    assert b"GCOL" not in (tmp_path / "out.h5").read_bytes()
