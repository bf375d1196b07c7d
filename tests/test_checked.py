"""What prepare remembers of files: nothing is read in vain, and nothing is believed in vain."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cache import checked, images, labels
from cache.checked import CheckedFiles
from cache.store.artefact import fingerprint
from cache.store.errors import InputError
from cache.store.tables import read_table, write_table
from tests.conftest import Project

INDEX, LABELS, MEMORY = (Path(f"data/{name}.csv") for name in ("index", "labels", ".checked"))
PHOTO, LABEL = Path("photos/images/train/002.jpg"), Path("photos/labels/train/002.png")
ALL = 18  # files of the project


class Runs:
    """Runs of prepare, each as DVC does it: outputs are deleted first."""

    def __init__(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        self.project = project
        self.read: list[str] = []
        for module, name in ((images, "_decode"), (labels, "_read_bytes")):
            monkeypatch.setattr(module, name, self.counted(getattr(module, name)))

    def counted(self, function: Any) -> Any:
        def count(path: str | Path, *rest: Any) -> Any:
            self.read.append(str(path))
            return function(path, *rest)

        return count

    def reads(self) -> list[str]:
        """Run; the files that were read. What it writes is what a run without memory writes."""
        self.forget_outputs()
        self.project.ok("prepare")
        read, written = self.read[:], (INDEX.read_bytes(), LABELS.read_bytes())
        kept = MEMORY.read_bytes()
        MEMORY.unlink()
        self.forget_outputs()
        self.project.ok("prepare")
        assert len(self.read) == len(set(self.read))
        assert (INDEX.read_bytes(), LABELS.read_bytes()) == written
        MEMORY.write_bytes(kept)
        return read

    def forget_outputs(self) -> None:
        self.read.clear()
        INDEX.unlink(missing_ok=True)
        LABELS.unlink(missing_ok=True)


@pytest.fixture
def runs(project: Project, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """A project whose files, though just made, count as left alone; prepare ran once."""
    monkeypatch.setattr(checked, "MARGIN", 0)
    time.sleep(0.02)  # a tick of the kernel's clock
    runs = Runs(project, monkeypatch)
    assert len(runs.reads()) == ALL
    return runs


def test_a_second_run_reads_nothing(runs: Runs) -> None:
    assert runs.reads() == []


def turn(path: Path) -> None:
    """Other pixels in the same file."""
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_180).save(path)


def replace(path: Path) -> None:
    """Another file of the same size and time of modification takes the name."""
    found = path.stat()
    other = path.with_name("other")
    shutil.copy(path, other)
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    os.replace(other, path)
    assert path.stat().st_ino != found.st_ino
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (found.st_size, found.st_mtime_ns)


def in_place(path: Path) -> None:
    """New bytes in place; size, inode and time of modification are those of before."""
    found, content = path.stat(), bytearray(path.read_bytes())
    if path.suffix == ".jpg":
        content[content.index(b"\xff\xdb") + 60] ^= 1  # an entry of a table of quantisation
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_ino) == (found.st_size, found.st_ino)
    assert path.stat().st_mtime_ns == found.st_mtime_ns


@pytest.mark.parametrize("change", [turn, Path.touch, replace, in_place])
@pytest.mark.parametrize("path", [PHOTO, LABEL], ids=["photo", "label"])
def test_a_file_that_changed_is_read_again_alone(runs: Runs, path: Path, change: Any) -> None:
    change(path)
    assert runs.reads() == [str(path)]
    assert runs.reads() == []


def test_files_that_are_gone_or_new(runs: Runs) -> None:
    for path in (PHOTO, LABEL):
        path.unlink()
    assert runs.reads() == []
    assert str(PHOTO) not in MEMORY.read_text()
    new = [path.with_stem("new") for path in (PHOTO, LABEL)]
    for path in new:
        shutil.copy(path.with_stem("001"), path)
    assert runs.reads() == [str(path) for path in new]


def test_a_link_to_another_file_is_read_again(runs: Runs) -> None:
    PHOTO.unlink()
    PHOTO.symlink_to("001.jpg")
    assert runs.reads() == [str(PHOTO)]
    PHOTO.unlink()
    PHOTO.symlink_to("003.jpg")
    assert runs.reads() == [str(PHOTO)]
    turn(PHOTO.with_stem("003"))
    assert sorted(runs.reads()) == [str(PHOTO), str(PHOTO.with_stem("003"))]


def test_labels_are_checked_against_other_classes_again(runs: Runs) -> None:
    classes = Path("photos/classes.txt")
    classes.write_text("sky\nmeadow\nroad\n")
    runs.project.fails("prepare", "label values must lie in 0..2", str(LABEL))
    classes.write_text("sky\nmeadow\nroad\nbox\nboat\n")
    assert len(runs.reads()) == ALL // 2  # no photo


def test_a_label_is_checked_again_where_its_photo_has_another_size(runs: Runs) -> None:
    with Image.open(PHOTO) as image:
        image.resize((64, 48)).save(PHOTO)
    runs.project.fails("prepare", "a label must have its image's size, 64 x 48 px", str(LABEL))


@pytest.mark.parametrize("path", [PHOTO, LABEL], ids=["photo", "label"])
def test_a_bad_file_stays_bad_and_the_others_are_not_read_again(runs: Runs, path: Path) -> None:
    good = path.read_bytes()
    path.write_bytes(good[:60])
    for _ in range(2):
        runs.read.clear()
        runs.project.fails("prepare", str(path), "cannot be decoded")
        assert runs.read == [str(path)]
        assert str(path) not in MEMORY.read_text()
    path.write_bytes(good)
    assert runs.reads() == [str(path)]


def test_a_first_run_that_failed_is_remembered_too(runs: Runs) -> None:
    MEMORY.unlink()
    good = PHOTO.read_bytes()
    PHOTO.write_bytes(b"")
    runs.project.fails("prepare", "1 of 9 images are bad")
    PHOTO.write_bytes(good)
    assert sorted(runs.reads()) == sorted(
        [str(PHOTO), *map(str, Path("photos/labels").rglob("*.png"))]
    )


def damage(how: str) -> None:
    content = MEMORY.read_bytes()
    if how == "cut":
        MEMORY.write_bytes(content[: len(content) // 2])
    elif how == "rows cut":
        MEMORY.write_bytes(b"\n".join(content.split(b"\n")[:4]) + b"\n")
    elif how == "flipped":
        row = content.index(PHOTO.name.encode()) + 40
        MEMORY.write_bytes(content[:row] + bytes([content[row] ^ 1]) + content[row + 1 :])
    elif how == "empty":
        MEMORY.write_bytes(b"")
    elif how == "noise":
        MEMORY.write_bytes(np.random.default_rng(0).bytes(1000))
    elif how == "other columns":
        write_table(MEMORY, ("a", "b"), [(1, 2)], "")
    else:
        rows, _ = read_table(MEMORY, checked._COLUMNS, "")
        write_table(MEMORY, checked._COLUMNS, rows, fingerprint("other checks"))


@pytest.mark.parametrize(
    "how", ["cut", "rows cut", "flipped", "empty", "noise", "other columns", "other checks"]
)
def test_a_memory_that_is_damaged_or_of_other_checks_is_ignored(runs: Runs, how: str) -> None:
    damage(how)
    assert len(runs.reads()) == ALL
    assert runs.reads() == []


def test_a_memory_that_cannot_be_written_is_done_without(runs: Runs) -> None:
    MEMORY.unlink()
    MEMORY.mkdir()
    runs.read.clear()
    runs.project.ok("prepare")
    assert len(runs.read) == ALL
    assert not list(MEMORY.parent.glob("*.partial"))


def test_what_decodes_is_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = checked._checks()
    assert checked._checks() == before
    monkeypatch.setattr(checked.PIL, "__version__", "0")
    assert checked._checks() != before
    monkeypatch.undo()
    monkeypatch.setattr(checked, "file_hash", lambda path: "0" if path.suffix == ".tsv" else "1")
    assert checked._checks() != before


def test_another_data_set_between_two_runs_forgets_nothing(runs: Runs) -> None:
    shutil.copytree("photos", "more")
    runs.project.set("datasets.tiny.root", "more")
    assert len(runs.reads()) == ALL
    runs.project.set("datasets.tiny.root", "photos")
    assert runs.reads() == []


def test_a_file_that_was_just_changed_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change within the same tick of the clock leaves size, times and inode as they were."""
    path, content = tmp_path / "a.png", ["first", "other", "other"]
    path.write_bytes(b"")
    last = path.stat().st_ctime_ns
    found = []
    for seconds in (1, 100, 200):
        monkeypatch.setattr(checked.time, "time_ns", lambda at=seconds: last + at * 10**9)
        with CheckedFiles(tmp_path / "memory") as remembered:
            found.append(remembered.once(lambda path: content.pop(0))(path))
    assert found == ["first", "other", "other"]
    assert content == ["other"]  # the third time it was known


def test_a_file_that_is_missing_is_the_checks_to_tell(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="cannot be decoded"),
        CheckedFiles(tmp_path / "m") as known,
    ):
        known.once(images.check_image)(tmp_path / "a.png")


@pytest.mark.parametrize(("age", "settled"), [(0.5, False), (1.9, False), (2.1, True), (-9, False)])
def test_a_file_settles_after_the_margin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, settled: bool
) -> None:
    (tmp_path / "a").write_bytes(b"")
    found = os.stat(tmp_path / "a")
    last = max(found.st_mtime_ns, found.st_ctime_ns)
    monkeypatch.setattr(checked.time, "time_ns", lambda: last + int(age * 1e9))
    assert checked._state(tmp_path / "a")[1] is settled


@pytest.mark.parametrize("field", ["st_size", "st_mtime_ns", "st_ctime_ns", "st_ino"])
def test_each_part_of_the_state_counts(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    found = SimpleNamespace(st_size=1, st_mtime_ns=2, st_ctime_ns=3, st_ino=4)
    monkeypatch.setattr(checked.os, "stat", lambda path: found)
    before = checked._state("a")
    setattr(found, field, 5)
    assert checked._state("a") != before


def test_the_state_is_taken_before_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "MARGIN", 0)
    path, asked = tmp_path / "a.png", []
    path.write_bytes(b"")

    def check(path: Path) -> int:
        asked.append(path)
        if len(asked) == 1:
            path.write_bytes(b"changed while it was read")
        time.sleep(0.02)
        return len(asked)

    found = []
    time.sleep(0.02)
    for _ in range(3):
        with CheckedFiles(tmp_path / "memory") as remembered:
            found.append(remembered.once(check)(path))
    assert found == [1, 2, 2]
