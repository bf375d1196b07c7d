"""A day's habits: what commands say while they work, when stopped, and when asked amiss."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from cache.backbone import load_backbone
from cache.index import ImageRow, write_index
from cache.labels import write_labels
from cache.store.artefact import amount
from cache.store.errors import InputError
from pipeline.drawing import lettering
from pipeline.drawing.legend import legend
from stages import extract
from stages.running import estimates, progress
from stages.settings.params import load
from tests.conftest import REPOSITORY, Project

# Progress


def lines(code: str, **environment: str) -> list[str]:
    """What a program says of its progress, to a file, with a line every 0.2 s."""
    program = f"import time; from stages.running import progress; progress.EVERY = 0.2\n{code}"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
    )  # fmt: skip
    return run.stderr.splitlines()


def test_a_file_gets_lines_with_rate_and_time_left() -> None:
    said = lines("for _ in progress.track(range(6), 'testing', unit='photo'): time.sleep(0.15)")
    assert len(said) >= 3
    assert any("testing: " in line and "photo/s, " in line and "left" in line for line in said[:-1])
    assert said[-1].startswith("testing: 6 of 6 photos, ") and "left" not in said[-1]


def test_before_the_first_item_is_done_the_time_is_told() -> None:
    said = lines("for _ in progress.track([1], 'slow'): time.sleep(0.7)")
    assert said[0] == "slow: 0 of 1 images, for 0 s" and len(said) >= 3


def test_work_of_unknown_progress_lives() -> None:
    said = lines("with progress.alive('K-means of 64 clusters'): time.sleep(0.7)")
    assert len(said) >= 2 and said[0].startswith("K-means of 64 clusters: at work for ")


def test_the_rate_counts_from_the_start_and_without_what_was_done_before() -> None:
    with progress.bar() as bar:
        task = bar.add_task("testing", total=100, unit="step", completed=40)
        time.sleep(0.2)
        bar.advance(task, 2)
        found = bar.tasks[0]
        rate = float(progress._pace(found).split()[0])
    assert rate <= 2 / 0.2


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.4, "8 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_hours_of_k_means_are_told_before_they_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "_rate", lambda: 1e10)
    assert estimates.kmeans_words(100_000, 64, 384, 3) == ""
    text = estimates.kmeans_words(100_000, 60_000, 384, 3)
    assert "takes about 7 h 40 min of this machine's CPU" in text and "14.4 GB" in text


# Stopped


@pytest.mark.parametrize("stage", ["prepare", "extract", "train"])  # they write in three ways
def test_ctrl_c_ends_a_stage_in_a_line_and_the_next_run_completes_it(
    project: Project, stage: str
) -> None:
    """In a process of its own, where the package lies elsewhere, as from a wheel."""
    order = ["prepare", "extract", "context", "graph", "train"]
    project.ok(*order[: order.index(stage)])
    program = (
        "import os, signal, threading, stages.running.progress as p; from stages import main\n"
        "def stop(): os.kill(os.getpid(), signal.SIGINT)\n"
        "advance = p._Bar.advance\n"
        "def stopping(*a, **k):\n    stop(); return advance(*a, **k)\n"
        "p._Bar.advance = stopping; p._Bar.update = stopping\n"
        f"main(['{stage}'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 128 + signal.SIGINT, run.stderr
    assert "stopped by Ctrl-C. Finished parts are kept" in run.stderr
    assert "Traceback" not in run.stderr
    project.ok(stage)


# Asked amiss


def test_a_mistyped_command_lists_the_commands(project: Project) -> None:
    result = project.run("extarct")
    assert result.exit_code == 2
    assert "Did you mean extract? There are prepare, extract, context" in result.output


def test_a_folder_that_must_not_be_written_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "data/index.csv")

    monkeypatch.setattr("stages.prepare.write_index", refuse)
    project.fails(
        "prepare", "data/index.csv cannot be written or read (Permission denied)", "chmod"
    )


def test_eval_of_another_data_set_says_so(project: Project) -> None:
    project.made("segment")
    rows = [ImageRow(0, "all", "a", "a.jpg", 1, 1, "")]
    write_index("data/index.csv", rows)
    write_labels("data/labels.csv", {}, [], rows)
    text = project.fails("eval", "the index must hold split val, found all", "`dvc repro`")
    assert "0 of 0" not in text


def test_a_rate_does_not_end_above_its_start(project: Project) -> None:
    project.set("train.lr_end", 0.01)
    project.fails("prepare", "train", "lr_end (0.01) must not exceed lr (0.0001)")


def test_a_root_may_begin_with_a_tilde(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(project.folder))
    project.set("datasets.tiny.root", "~/photos")
    project.ok("prepare")
    assert load().data.root == str(project.folder / "photos")


def test_room_on_disk_is_told_in_units_that_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [amount(n) for n in (0, 812, 65_536, 1_234_567_890)] == [
        "0 B", "812 B", "65.54 kB", "1.235 GB",
    ]  # fmt: skip
    monkeypatch.setattr(extract, "free_bytes", lambda _: 4096)
    with pytest.raises(InputError, match=r"65\.54 kB are needed, 4\.096 kB are free"):
        extract.check_space(tmp_path, 1, 65_536, 65_536)


# Models


def test_a_convolutional_stem_is_refused_where_the_model_is_opened(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_r_s16_p8_224", num_classes=0)
    save_file(model.state_dict(), tmp_path / "hybrid.safetensors")
    with pytest.raises(InputError, match=r"96 for 96 x 64 px, found 6 tokens\. Supported are ViTs"):
        load_backbone("vit_tiny_r_s16_p8_224", str(tmp_path / "hybrid.safetensors"))


@pytest.mark.parametrize(
    ("wrap", "good"),
    [
        (lambda state: state, True),
        (lambda state: {"model": state}, True),
        (lambda state: {"state_dict": {f"module.{name}": v for name, v in state.items()}}, True),
        (lambda state: {"teacher": {f"backbone.{name}": v for name, v in state.items()}}, False),
        (lambda state: {f"encoder.{name}": value for name, value in state.items()}, False),
    ],
    ids=["plain", "model", "parallel", "teacher", "prefix"],
)
def test_a_checkpoint_under_other_names_does_not_leave_random_weights(
    tmp_path: Path, wrap: Callable[[dict], dict], good: bool
) -> None:
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    torch.save(wrap(state), tmp_path / "weights.pth")
    if good:
        loaded = load_backbone("test_vit", str(tmp_path / "weights.pth")).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in state.items())
        return
    with pytest.raises(InputError, match=r"weights\.pth must hold the weights of test_vit"):
        load_backbone("test_vit", str(tmp_path / "weights.pth"))


# Names in any script


def test_letters_come_from_a_font_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lettering.unshown(["ciel é", "ciel e\u0301", "море", "Größe ≥ λ"]) == ""
    folder = Path(lettering.DEJAVU).parent
    others = {
        chr(code) for path in folder.glob("STIX*.ttf") for code in lettering._letters(str(path))
    } - {chr(code) for code in lettering._letters(lettering.DEJAVU)}
    letter = min(other for other in others if other.isprintable())
    lettering._font_of.cache_clear()
    monkeypatch.setattr(lettering, "_system", tuple)
    assert lettering.unshown([f"a {letter}", "\ue123"]) == f"{letter}\ue123"
    lettering._font_of.cache_clear()
    monkeypatch.setattr(lettering, "_system", lambda: tuple(map(str, sorted(folder.glob("*.ttf")))))
    assert lettering.unshown([f"a {letter}"]) == ""
    (first, font), (second, other) = lettering.runs(f"a {letter}")
    assert (first, second) == ("a ", letter) and font == lettering.DEJAVU != other
    assert lettering.families([letter])[0] == "DejaVu Sans"
    lettering._font_of.cache_clear()


def test_a_legend_shows_letters_and_no_boxes() -> None:
    colours = np.zeros((1, 3), np.uint8)
    seen = [legend([name], colours)[:, 28:].tobytes() for name in ("é", "ж", "ß", "λ")]
    assert len(set(seen)) == 4


# Places


def test_paths_with_spaces_and_umlauts(project: Project) -> None:
    Path("Bilder vom Süden (2)/Ä b").mkdir(parents=True)
    for path in sorted(Path("photos/images/train").iterdir()):
        shutil.copy(path, Path("Bilder vom Süden (2)/Ä b") / f"ö {path.name}")
    root = "Bilder vom Süden (2)"
    project.set("datasets.tiny", {"root": root, "train": "all", "eval": "all"})
    project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval", "report")
    result = project.run("predict", root, "--out", "Ergebnis für Ä", "--mapping", "none")
    assert result.exit_code == 0, result.output
    assert Image.open("Ergebnis für Ä/labels/Ä b/ö 000.png").size == (128, 96)
