"""The kinds of faults of the campaign: each injures a copied project and says how it ended."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import yaml
from PIL import Image

import stages
from bench import cluster
from bench.fault_lab import OUTPUTS, Lab, run, turn_photo
from bench.project import REPOSITORY, change_params

Found = tuple[str, str]  # outcome, and what was done
Draw = np.random.Generator

READERS = {
    "data/index.csv": ("extract", "segment", "eval", "report"),
    "data/labels.csv": ("eval", "report"),
    "data/features.zarr": ("context", "graph", "train", "segment"),
    "data/context.zarr": ("graph", "train", "segment"),
    "data/graph.h5": ("train",),
    "data/head": ("segment", "predict"),
    "data/segments.h5": ("eval", "report"),
    "results/counts.json": ("report",),
    "results/metrics.json": ("report",),
    "results/per_class.csv": ("report",),
    "results/curve.csv": ("report",),
    "results/mapping.json": ("report", "predict"),
}
RESUMED = ("extract", "context", "graph", "train", "segment")


def quiet() -> None:
    """Import all stages, one thread each, before the first fork."""
    for stage in stages.STAGES:
        importlib.import_module(f"stages.{stage}")
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def pick(draw: Draw, items: Any) -> Any:
    """One of some items."""
    items = list(items)
    return items[int(draw.integers(len(items)))]


def files_of(top: Path) -> list[Path]:
    """The file, or all files below the folder."""
    return [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())


def flip(path: Path, draw: Draw) -> str:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    if not content:
        return "nothing to flip"
    place, bit = int(draw.integers(len(content))), int(draw.integers(8))
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place}"


def truncate(path: Path, draw: Draw) -> str:
    """Cut the end off."""
    length = int(draw.integers(max(path.stat().st_size, 1)))
    os.truncate(path, length)
    return f"cut to {length} bytes"


def blank(path: Path, draw: Draw) -> str:
    """Zero a run of bytes, as a disk does that lost a block."""
    content = bytearray(path.read_bytes())
    start = int(draw.integers(max(len(content), 1)))
    stop = min(len(content), start + int(draw.integers(1, 4096)))
    content[start:stop] = bytes(stop - start)
    path.write_bytes(content)
    return f"zeros from {start} to {stop}"


def delete(path: Path, draw: Draw) -> str:
    """Delete the file."""
    path.unlink()
    return "deleted"


def damaged(how: Callable[[Path, Draw], str]) -> Callable[[Lab, Path, Draw], Found]:
    """One file of one artefact is damaged; a stage that reads the artefact runs."""

    def kind(lab: Lab, folder: Path, draw: Draw) -> Found:
        lab.copy(folder)
        artefact = pick(draw, READERS)
        file = pick(draw, files_of(folder / artefact))
        done, stage = how(file, draw), pick(draw, READERS[artefact])
        story = f"{file.relative_to(folder)} {done}, then {stage}"
        return told(lab, folder, stage, artefact, story)

    return kind


def told(lab: Lab, folder: Path, stage: str, clue: str, story: str) -> Found:
    """Run the stage; its outcome and, with the story, the end of what it said."""
    ended = run(folder, stage)
    return lab.judge(folder, stage, clue, ended), f"{story}: {ended.code} {ended.output[-300:]!r}"


def remove_outputs(folder: Path, stage: str) -> None:
    """Remove a stage's outputs, as DVC does before it runs the stage."""
    for name in OUTPUTS[stage]:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def dies_at(number: int, after: bool) -> Callable[[], None]:
    """Kills the process at this file that it moves to its place, before or after."""

    def before() -> None:
        replace, count = os.replace, 0

        def counted(*paths: Any) -> None:
            nonlocal count
            count += 1
            if count == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = counted  # type: ignore[assignment]

    return before


def killed_between_files(lab: Lab, folder: Path, draw: Draw) -> Found:
    """A stage dies when it moves a file to its place, and runs again."""
    lab.copy(folder)
    stage = pick(draw, list(OUTPUTS)[:-1])
    remove_outputs(folder, stage)
    number, after = int(draw.integers(1, 12)), bool(draw.integers(2))
    run(folder, stage, before=dies_at(number, after))
    return told(lab, folder, stage, "", f"{stage} killed at file {number}, after: {after}")


def stopped_at_a_time(lab: Lab, folder: Path, draw: Draw) -> Found:
    """A stage gets a signal at any moment, and runs again."""
    lab.copy(folder)
    stage = pick(draw, list(OUTPUTS)[:-1])
    number = pick(draw, (signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    seconds = float(draw.uniform(0, 1.2))
    remove_outputs(folder, stage)

    def stop(process: int) -> None:
        time.sleep(seconds)
        os.kill(process, number)

    first = run(folder, stage, during=stop)
    if "Traceback" in first.output and "bench/fault_lab.py" not in first.output.splitlines()[1]:
        return "traceback", f"{stage} {number!r} after {seconds:.2f} s: {first.output[-600:]}"
    return told(lab, folder, stage, "", f"{stage} {number!r} after {seconds:.2f} s")


def damaged_work(lab: Lab, folder: Path, draw: Draw) -> Found:
    """A stage dies, a file of its unfinished work is damaged, and it runs again."""
    lab.copy(folder)
    stage = pick(draw, RESUMED)
    remove_outputs(folder, stage)
    run(folder, stage, before=dies_at(int(draw.integers(2, 9)), True))
    files = files_of(folder / "data/.work") if (folder / "data/.work").exists() else []
    if not files:
        return told(lab, folder, stage, "", f"{stage}, no work left")
    file, how = pick(draw, files), pick(draw, (flip, truncate, blank, delete))
    done = how(file, draw)
    return told(lab, folder, stage, "", f"{stage}, {file.relative_to(folder)} {done}")


def full_disk(lab: Lab, folder: Path, draw: Draw) -> Found:
    """A stage runs on a disk that gets full, and again when there is room."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        return "skipped", "only root may mount"
    try:
        lab.copy(folder)
        stage = pick(draw, list(OUTPUTS)[:-1])
        remove_outputs(folder, stage)
        used = shutil.disk_usage(folder).used
        size = used + int(draw.integers(1, 300)) * 4096
        resize = ["mount", "-o", f"remount,size={size}", str(folder)]
        subprocess.run(resize, check=True)
        first = run(folder, stage)
        story = f"{stage}, {size - used} bytes free"
        found = lab.judge(folder, stage, "disk is full", first)
        if found not in ("right", "clear error"):
            return found, f"{story}: {first.code} {first.output[-300:]!r}"
        subprocess.run([*resize[:2], "remount,size=100m", str(folder)], check=True)
        return told(lab, folder, stage, "", f"{story}, then room")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def mixed(lab: Lab, folder: Path, draw: Draw) -> Found:
    """One artefact comes from a project of other photos, or of another seed."""
    lab.copy(folder)
    source = pick(draw, (lab.other, lab.reseeded))
    late = [n for n in READERS if n.startswith("results") or n == "data/segments.h5"]
    artefact = pick(draw, READERS if source is lab.other else late)
    if source is lab.reseeded and artefact == "data/segments.h5":
        stage = "report"  # eval may take label maps of any seed
    else:
        stage = pick(draw, READERS[artefact])
    # An index or features of other photos are a fine start.
    stage = {("data/index.csv", "extract"): "eval", ("data/features.zarr", "context"): "graph"}.get(
        (artefact, stage), stage
    )
    path = folder / artefact
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    here = source / artefact
    shutil.copytree(here, path) if here.is_dir() else shutil.copy(here, path)
    clue = r"data|results|photos|mapping|SHA-256"
    return told(lab, folder, stage, clue, f"{artefact} of {source.name}, then {stage}")


def changed_inputs(lab: Lab, folder: Path, draw: Draw) -> Found:
    """A photo or label is replaced, swapped or deleted after `prepare`, or both are renamed."""
    lab.copy(folder)
    names = ("train/00000", "train/00002", "val/00000", "val/00001")
    name, other = (f"photos/images/{n}.jpg" for n in draw.permutation(names)[:2])
    photo = folder / name
    label = folder / name.replace("images", "labels").replace("jpg", "png")
    change = pick(draw, ("turned", "swapped", "deleted", "label", "label deleted", "renamed"))
    stage = pick(
        draw,
        ("extract", "report") if change in ("turned", "swapped", "deleted") else ("eval", "report"),
    )
    if change == "turned":
        turn_photo(photo)
    elif change == "swapped":
        content = photo.read_bytes()
        photo.write_bytes((folder / other).read_bytes())
        (folder / other).write_bytes(content)
    elif change == "deleted":
        photo.unlink()
    elif change == "label":
        turn_photo(label)
    elif change == "label deleted":
        label.unlink()
    else:
        for path in (photo, label):
            path.rename(path.with_stem("zzz"))
        stage = "eval"
        run(folder, "prepare")
        ended = run(folder, "eval")
        same = all(
            (folder / n).read_bytes() == (lab.base / n).read_bytes()
            for n in ("results/metrics.json", "results/mapping.json")
        )
        return ("right" if same and not ended.code else "silently wrong"), f"{name} renamed"
    return told(lab, folder, stage, "photos/", f"{name} {change}, then {stage}")


SECTIONS = {"extract": "extract", "context": "context", "graph": "graph", "head": "train",
            "train": "train", "kmeans": "train", "segment": "segment"}  # fmt: skip
VALUES: tuple[Any, ...] = (
    -1, 0, 1, 0.5, 3, float("inf"), float("nan"), -0.5, "x", "", None, [], {}, True, [-1],
    1e300, 1e-300, "1e6", 2**70, "../x", ["last", "last"],
)  # fmt: skip


def bad_parameters(lab: Lab, folder: Path, draw: Draw) -> Found:
    """A parameter has a strange value, or params.yaml is damaged; what is taken is finite."""
    lab.copy(folder)
    path = folder / "params.yaml"
    if not draw.integers(4):
        how = pick(draw, (flip, truncate, blank, delete))
        done = how(path, draw)
        ended = run(folder, "prepare")
        key, value, stage = "params.yaml", done, "prepare"
    else:
        tree = yaml.safe_load(path.read_text())
        section = pick(draw, SECTIONS)
        node, value, stage = tree[section], pick(draw, VALUES), SECTIONS[section]
        key = pick(draw, node)
        if isinstance(node[key], dict) and draw.integers(8):
            node = node[key]
            key = pick(draw, node)
        node[key] = value
        path.write_text(yaml.safe_dump(tree))
        ended = run(folder, stage)
    outcome = lab.judge(folder, stage, f"{key}|params.yaml|photos", ended)
    if outcome == "silently wrong":  # a valid value, another result: is it one?
        lines = (folder / "results/curve.csv").read_text()
        outcome = "silently wrong" if "nan" in lines or "inf" in lines else "right"
    return outcome, f"{stage}, {key} = {value!r}: {ended.code} {ended.output[-300:]!r}"


def odd_image(draw: Draw) -> tuple[str, Any]:
    """A name and what to write there: an image, or bytes."""
    grey = draw.integers(0, 256, (40, 50)).astype(np.uint8)
    colour = Image.fromarray(np.stack([grey] * 3, axis=-1))
    return pick(draw, [
        ("float.tif", Image.fromarray(grey.astype(np.float32) / 255)),
        ("wide.tif", Image.fromarray(grey.astype(np.int32) * 100_000)),
        ("deep.png", Image.fromarray(grey.astype(np.uint16) * 257)),
        ("one.png", Image.new("RGB", (1, 1))),
        ("strip.png", Image.new("RGB", (3000, 2))),
        ("bits.png", Image.new("1", (40, 30))),
        ("palette.png", colour.convert("P")),
        ("alpha.png", colour.convert("RGBA")),
        ("grey_alpha.png", colour.convert("LA")),
        ("cmyk.jpg", colour.convert("CMYK")),
        ("moving.webp", colour),
        ("empty.jpg", b""),
        ("text.jpg", b"no image"),
        ("noise.png", b"\x89PNG\r\n\x1a\n" + draw.bytes(200)),
        ("bomb.ppm", b"P6 60000 60000 255\n" + bytes(100)),
        ("zero.pgm", b"P5 0 0 255\n"),
        ("a\rb.png", colour),
        ("a\nb.png", colour),
        (os.fsdecode(b"\xff\xfe.png"), colour),
        ("-x.png", colour),
        ("$(x) <b>.png", colour),
        ("cut.jpg", None),
        ("flipped.jpg", None),
    ])  # fmt: skip


def odd_images(lab: Lab, folder: Path, draw: Draw) -> Found:
    """An unusual image is checked, or segmented; what is taken has a label map of its size."""
    lab.copy(folder)
    name, content = odd_image(draw)
    path = folder / "photos/images/val" / name
    if isinstance(content, Image.Image):
        content.save(path)
    elif content is not None:
        path.write_bytes(content)
    else:
        shutil.copy(folder / "photos/images/val/00000.jpg", path)
        (truncate if name == "cut.jpg" else flip)(path, draw)
    clue = r"photos/images/val|labels/val"
    if draw.integers(2):
        shutil.rmtree(folder / "photos/labels/val")
        ended = run(folder, "prepare")
        outcome = lab.judge(folder, "prepare", clue, ended)
        return ("right" if outcome == "silently wrong" else outcome), f"prepare {name!r}"
    ended = run(folder, "predict", "photos/images/val", "--out", "odd", "--mapping", "none")
    outcome = lab.judge(folder, "predict", clue, ended)
    if not ended.code:
        labels = folder / "odd/labels" / Path(name).with_suffix(".png")
        with Image.open(labels) as found, Image.open(path) as asked:
            outcome = "right" if found.size == asked.size else "silently wrong"
    return outcome, f"predict {name!r}: {ended.code} {ended.output[-300:]!r}"


def double_start(lab: Lab, folder: Path, draw: Draw) -> Found:
    """A stage is started twice at once, and once more."""
    lab.copy(folder)
    stage = pick(draw, list(OUTPUTS)[:-1])
    delay, second = float(draw.uniform(0, 0.6)), []

    def again(_: int) -> None:
        time.sleep(delay)
        second.append(run(folder, stage))

    first = run(folder, stage, during=again)
    for ended in (first, *second):
        outcome = lab.judge(folder, stage, "another process", ended)
        if outcome not in ("right", "clear error"):
            return outcome, f"{stage} {delay:.2f}: {ended.code} {ended.output[-300:]!r}"
    return told(lab, folder, stage, "", f"{stage} twice")


def on_a_cluster(lab: Lab, folder: Path, draw: Draw) -> Found:
    """A worker or the scheduler of a Dask cluster is killed, or a worker has another version."""
    lab.copy(folder)
    stage, fault = (
        pick(draw, ("extract", "graph", "segment")),
        pick(draw, ("worker", "scheduler", "version")),
    )
    remove_outputs(folder, stage)
    params = folder / "params.yaml"
    with ExitStack() as stack:
        address, process = stack.enter_context(cluster.scheduler_process(lab.folder))
        code = REPOSITORY
        if fault == "version":
            code = folder / "code"
            for name in ("cache", "pipeline", "stages"):
                shutil.copytree(REPOSITORY / name, code / name)
            with open(code / "pipeline/features/tiles.py", "a") as file:
                file.write("# another version\n")
        victim = stack.enter_context(cluster.worker(lab.folder, address, code))
        if fault == "worker":
            stack.enter_context(cluster.worker(lab.folder, address))
        change_params(params, params, [f"compute.scheduler={address}"])
        delay = float(draw.uniform(1, 5))

        def kill(_: int) -> None:
            time.sleep(delay)
            (victim if fault == "worker" else process).kill()

        ended = run(folder, stage, during=None if fault == "version" else kill)
    change_params(params, params, ["compute.scheduler=sync"])
    outcome = lab.judge(folder, stage, r"scheduler|worker", ended)
    story = f"{stage} {fault} {delay:.1f} s: {ended.code} {ended.output[-600:]!r}"
    if outcome not in ("right", "clear error"):
        return outcome, story
    after = lab.judge(folder, stage)
    return (outcome if after == "right" else after), story


KINDS: dict[str, tuple[Callable[[Lab, Path, Draw], Found], float]] = {
    "a bit flipped": (damaged(flip), 700),
    "a file cut": (damaged(truncate), 220),
    "bytes zeroed": (damaged(blank), 200),
    "a file deleted": (damaged(delete), 150),
    "unfinished work damaged": (damaged_work, 150),
    "killed between two files": (killed_between_files, 120),
    "KILL, TERM, INT at any time": (stopped_at_a_time, 120),
    "the disk full": (full_disk, 100),
    "artefacts mixed": (mixed, 100),
    "inputs changed": (changed_inputs, 90),
    "bad parameters": (bad_parameters, 200),
    "odd images": (odd_images, 90),
    "started twice": (double_start, 30),
    "a cluster's worker, scheduler, version": (on_a_cluster, 9),
}
