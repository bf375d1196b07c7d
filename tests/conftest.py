"""Small real input for all tests: drawn photos with labels, and a tiny ViT of timm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import timm
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file
from threadpoolctl import threadpool_limits

import stages
from cache.store.artefact import file_hash
from stages import extract

REPOSITORY = Path(__file__).resolve().parent.parent
OUTPUTS = {
    "prepare": ("data/index.csv", "data/labels.csv"),
    "extract": ("data/features.zarr",),
    "context": ("data/context.zarr",),
    "graph": ("data/graph.h5",),
    "train": ("data/head", "results/curve.csv"),
    "segment": ("data/segments.h5",),
}
COLOURS = np.array([[90, 140, 220], [60, 130, 50], [120, 110, 100], [200, 60, 40]])


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several processes that share the tests one thread, not one for each core."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)
        threadpool_limits(1)


def metrics_of() -> dict[str, Any]:
    """The metrics of the only data set and protocol, by predictor."""
    (by_variant,) = json.loads(Path("results/metrics.json").read_text()).values()
    (found,) = by_variant.values()
    return found


def draw_scene(generator: np.random.Generator, height: int, width: int) -> tuple[Any, Any]:
    """A photo-like image and its labels: sky, meadow, road, a box, with noise."""
    labels = np.zeros((height, width), np.uint8)
    horizon = int(height * generator.uniform(0.3, 0.5))
    labels[horizon:] = 1
    labels[int(height * 0.75) :] = 2
    top, left = horizon - height // 8, int(generator.uniform(0.1, 0.6) * width)
    labels[top : top + height // 4, left : left + width // 4] = 3
    image = COLOURS[labels] + generator.normal(0, 12, (height, width, 1))
    return np.clip(image, 0, 255).astype(np.uint8), labels


def make_dataset(root: Path, counts: dict[str, int], height: int = 96, width: int = 128) -> Path:
    """A labelled data set of drawn scenes in folder layout."""
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            image, labels = draw_scene(generator, height, width)
            Image.fromarray(image).save(root / "images" / split / f"{number:03d}.jpg", quality=95)
            Image.fromarray(labels).save(root / "labels" / split / f"{number:03d}.png")
    (root / "classes.txt").write_text("sky\nmeadow\nroad\nbox\n")
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint file of timm's smallest ViT, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=0)
    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    save_file(model.state_dict(), path)
    return path


class Project:
    """A project folder of a test: its params.yaml and its stages, run as a user would."""

    once: Callable[[], Project]

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder = folder
        self.tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
        self.set("dataset", "tiny")
        self.set("datasets.tiny", {"root": "photos", "train": "train", "eval": "val"})
        self.set("backbone", "tiny")
        self.set(
            "backbones.tiny",
            {"model": "test_vit", "weights": str(weights), "context": {"late": 1.0, "last": 0.5}},
        )
        self.set("clusters", 6)
        self.set("extract.train.short_side", 96)
        self.set("graph.group_patches", 3 * 48)
        self.set("graph.k", 0.1)
        self.set("context.components", 16)
        self.set("head.mlp_hidden", 64)
        self.set("head.head_dim", 16)
        self.set("train.epochs", 3)

    def set(self, key: str, value: Any) -> None:
        """Set one dotted key of params.yaml."""
        *above, last = key.split(".")
        node = self.tree
        for part in above:
            node = node[part]
        node[last] = value
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.tree, sort_keys=False))

    def shards(self, patches: int) -> None:
        """Let shards, and tiles, have at most so many patches; the fixture takes it back."""
        extract.SHARD_PATCHES = extract.TILE_PATCHES = patches

    def run(self, *arguments: str) -> Result:
        """Run a stage in this process; a failure does not raise."""
        return CliRunner().invoke(stages.main, list(arguments))

    def ok(self, *names: str) -> None:
        """Run stages that must succeed."""
        for name in names:
            result = self.run(name)
            assert result.exit_code == 0, result.output

    def made(self, last: str) -> None:
        """Have the stages up to this one done: their files are copied from a project like this."""
        other = self.once()
        assert self.tree == other.tree, "only projects without settings of their own can be copied"
        (self.folder / "data/.work").mkdir(parents=True, exist_ok=True)
        for stage, paths in OUTPUTS.items():
            for path in paths:
                source, target = other.folder / path, self.folder / path
                target.parent.mkdir(exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
            if stage == last:
                return

    def fails(self, name: str, *texts: str) -> str:
        """Run a stage that must end in one clear error that holds these texts."""
        result = self.run(name)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit), result.exception
        for text in texts:
            assert text in result.output, result.output
        return result.output


def run_stages(folder: Path, weights: Path, *stages: str) -> Path:
    """Run stages on the photos of a folder, which is given back."""
    project = Project(folder, weights)
    project.set("extract.batch", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        project.ok(*stages)
    return folder


def begin(folder: Path, weights: Path, patch: pytest.MonkeyPatch) -> Project:
    """Lay out a project of 6 training and 3 validation images and go there."""
    make_dataset(folder / "photos", {"train": 6, "val": 3})
    patch.chdir(folder)
    patch.delenv("EIGENSEG_TRACEBACK", raising=False)
    for name in ("SHARD_PATCHES", "TILE_PATCHES"):  # several shards
        patch.setattr(extract, name, 200)
    return Project(folder, weights)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Project:
    """A project whose stages up to segment have run, for others to copy."""
    with pytest.MonkeyPatch.context() as patch:
        found = begin(tmp_path_factory.mktemp("once"), weights, patch)
        found.ok(*OUTPUTS)
    return found


@pytest.fixture
def project(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Project:
    """A labelled project of 6 training and 3 validation images, nothing run yet."""
    found = begin(tmp_path, weights, monkeypatch)
    found.once = lambda: request.getfixturevalue("once")
    return found


def tables(command: click.Command, *options: str) -> list[dict]:
    """What a measuring command prints as JSON: one object for each of its tables."""
    result = CliRunner().invoke(command, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"')]


def tree_bytes(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, or of the one file, by relative path."""
    if folder.is_file():
        return {folder.name: file_hash(folder)}
    return {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kill_when(stage: str, pattern: str, count: int, slow: str, before: str = "") -> None:
    """Run a stage in a process of its own; kill it when data/.work holds so many such files.

    Args:
        slow: what writes these files, as the stage's module names it: it takes a while afterwards,
            so that the kill comes before the end however busy the machine is.
        before: Python to run first; ``s`` is the stage's module.
    """
    # As many threads as here: Dask, once started, leaves OMP_NUM_THREADS=1 in the environment.
    threads = {
        name: str(torch.get_num_threads()) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **threads}
    patches = f"e.SHARD_PATCHES, e.TILE_PATCHES = {extract.SHARD_PATCHES}, {extract.TILE_PATCHES}"
    wait = f"w = s.{slow}; s.{slow} = lambda *a, **k: (w(*a, **k), time.sleep(0.5))"
    imports = f"import time, stages.extract as e, stages.{stage} as s"
    program = f"{imports}; {patches}; {before or None}; {wait}; s.program({stage!r})"
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(Path("data/.work").glob(pattern))) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="session")
def reference_data() -> Callable[[str], Path]:
    """Path of a real data set beside the project; the test skips where it is absent."""

    def find(name: str) -> Path:
        for base in (os.environ.get("EIGENSEG_TEST_DATA"), REPOSITORY.parent / "shared"):
            if base and (Path(base) / name).exists():
                return Path(base) / name
        pytest.skip(f"{name} is absent: set EIGENSEG_TEST_DATA to a folder that holds it")

    return find
