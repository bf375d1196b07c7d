"""A finished small project to copy and injure, whose stages run in forks of this process."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import stages
from bench.project import change_params, make_project, random_backbone
from cache.store.artefact import file_hash
from stages import extract

OUTPUTS = {
    "prepare": ("data/index.csv", "data/labels.csv"),
    "extract": ("data/features.zarr",),
    "context": ("data/context.zarr",),
    "graph": ("data/graph.h5",),
    "train": ("data/head", "results/curve.csv"),
    "segment": ("data/segments.h5",),
    "eval": tuple(
        f"results/{name}"
        for name in ("counts.json", "mapping.json", "metrics.json", "per_class.csv")
    ),
    "report": ("results/report",),
    "predict": ("out",),
}
COMMANDS = {
    "predict": ("photos/images/val", "--out", "out", "--mapping", "results/mapping.json"),
}
SETTINGS = (
    "dataset=drawn", "datasets.drawn.root=photos", "clusters=5", "extract.train.short_side=64",
    "extract.batch=2", "graph.group_patches=40", "graph.k=4",
    "context.components=8", "head.mlp_hidden=16", "head.head_dim=16", "train.epochs=2",
    "compute.device=cpu",
)  # fmt: skip
LIMIT = 90  # seconds of a stage, after which it hangs
WAY_OUT = re.compile(
    r"\b(run|replace|remove|rename|delete|correct|choose|set|lower|change|make room|restore|wait|"
    r"add|valid|must|should|put|start|give|leave|export)\b",
    re.IGNORECASE,
)


class Run(NamedTuple):
    """End of a stage: its exit status, minus the signal that ended it, None for a hang."""

    code: int | None
    output: str


class Lab:
    """A finished project, and one of other photos and another seed, to copy and injure.

    Attributes:
        base, other, reseeded: the projects; the last one has the base's photos and another seed.
        digests: of what each stage wrote in the base.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        extract.SHARD_PATCHES = extract.TILE_PATCHES = 60  # several shards
        self.base, self.other, self.reseeded = (folder / n for n in ("base", "other", "reseeded"))
        weights = random_backbone(folder, "test_vit")
        make_project(self.base, 4, 2, 64, 80, (*weights, *SETTINGS))
        self._finish(self.base, ())
        for changed, settings in ((self.other, ()), (self.reseeded, ("seed=1",))):
            shutil.copytree(self.base, changed)
            shutil.rmtree(changed / "out")
            change_params(changed / "params.yaml", changed / "params.yaml", settings)
        for path in sorted((self.other / "photos/images").rglob("*.jpg")):
            turn_photo(path)
        self._finish(self.other, ())
        self._finish(self.reseeded, ("prepare", "extract", "context", "graph"))
        self.digests = {stage: written(self.base, stage) for stage in OUTPUTS}

    def _finish(self, folder: Path, done: Sequence[str]) -> None:
        for stage in OUTPUTS:
            if stage not in done:
                ended = run(folder, stage)
                if ended.code:
                    raise RuntimeError(f"the project must run whole, but {stage}: {ended.output}")

    def copy(self, folder: Path) -> Path:
        """A copy of the base, to injure."""
        return shutil.copytree(self.base, folder, dirs_exist_ok=True)

    def judge(self, folder: Path, stage: str, clue: str = "", ended: Run | None = None) -> str:
        """Run a stage in an injured project, unless it ran, and name the outcome.

        Args:
            clue: what a clear error names, a pattern.
        """
        ended = ended or run(folder, stage)
        if ended.code is None:
            return "hang"
        if "Traceback (most recent call last)" in ended.output:
            return "traceback"
        if ended.code < 0 or ended.code > 128:
            return "crash"
        if ended.code:
            said = ended.output[ended.output.rfind("Error: ") :]
            clear = said.startswith("Error: ") and re.search(clue, said) and WAY_OUT.search(said)
            return "clear error" if clear else "unclear error"
        return "right" if written(folder, stage) == self.digests[stage] else "silently wrong"


def turn_photo(path: Path) -> None:
    """Put another photo of the same size in the place of one."""
    from PIL import Image

    with Image.open(path) as image:
        turned = image.convert("RGB").transpose(Image.Transpose.ROTATE_180)
    turned.save(path)


def written(folder: Path, stage: str) -> dict[str, str]:
    """Digest of every file that a stage has written."""
    tops = [folder / name for name in OUTPUTS[stage]]
    files = [file for top in tops for file in ([top] if top.is_file() else sorted(top.rglob("*")))]
    return {str(f.relative_to(folder)): file_hash(f) for f in files if f.is_file()}


def run(
    folder: Path, stage: str, *arguments: str, before: Callable[[], None] | None = None,
    during: Callable[[int], None] | None = None,
) -> Run:  # fmt: skip
    """Run a stage in a fork of this process, which has imported everything already.

    Args:
        before: called in the fork before the stage.
        during: called here with the fork's id while it runs.
    """
    with tempfile.TemporaryFile() as told:
        process = os.fork()
        if not process:
            _become(folder, stage, arguments or COMMANDS.get(stage, ()), told.fileno(), before)
        if during:
            during(process)
        code = _wait(process)
        told.seek(0)
        return Run(code, told.read().decode(errors="replace"))


def _become(
    folder: Path, stage: str, arguments: Sequence[str], told: int, before: Callable | None
) -> None:
    """Be the stage's process; never returns."""
    code = 99
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        os.dup2(told, 1)
        os.dup2(told, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        if before:
            before()
        stages.main([stage, *arguments], prog_name="eigenseg")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(process: int) -> int | None:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None
