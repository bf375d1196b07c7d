"""Memory, time and disk of every stage while the data set, or K, grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from bench.project import REPOSITORY, make_project
from bench.timing import machine, show

STAGES = ("prepare", "extract", "context", "graph", "train", "segment", "eval", "report")
BOUND = 1.10  # the largest may take this much more memory than the smallest
STEEP = 1.10  # an exponent above it is no longer proportional
SETTLED = 0.1  # seconds; below them a time is noise
# What does not follow from the number of images, and small enough that the smallest data set
# already fills it: a shard, a group, the sample of K-means (16 x 600 patches).
SETTINGS = (
    "clusters=16",
    "extract.train.short_side=480",
    "train.epochs=1",
)
# A process starts with the peak of the one that starts it: so a small one stands in between.
MEASURE = """
import json, os, sys
pid = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(pid, 0)
print(json.dumps([usage.ru_maxrss, usage.ru_utime + usage.ru_stime]))
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


class Cost(NamedTuple):
    """Costs of a run: peak resident memory in MB (10^6 bytes), seconds of all cores, MB written.

    Seconds are of the processor, not of a clock, so that other work beside it changes them least.
    """

    megabytes: float
    seconds: float
    written: float


@click.command()
@click.option("--images", default=24, show_default=True, help="Training photos of the smallest.")
@click.option("--height", default=240, show_default=True, help="Of a photo, in pixels.")
@click.option("--width", default=320, show_default=True, help="Of a photo, in pixels.")
@click.option("--factor", "factors", default=[1, 4, 16], show_default=True, multiple=True)
@click.option("--clusters", multiple=True, type=int, help="Let K grow instead; repeatable.")
@click.option("-S", "settings", multiple=True, help="Set a parameter: key=value, repeatable.")
def main(
    images: int,
    height: int,
    width: int,
    factors: tuple[int, ...],
    clusters: tuple[int, ...],
    settings: tuple[str, ...],
) -> None:
    """Run every stage on drawn data sets of growing size and compare what it takes.

    One process a stage; where it starts others, the largest of them counts. The validation split
    has a third of the training photos. All else is fixed, see SETTINGS and -S. The libraries alone
    take what stands below "imports": with CUDA's, most of it. An exponent is the slope of log cost
    over log size, seconds less those of the imports.
    """
    empty = {s: cost(Path.cwd(), "-c", f"import stages.{s}") for s in STAGES}
    cases: dict[int, tuple[int, tuple[str, ...]]] = {
        k: (images, (f"clusters={k}",)) for k in clusters
    } or {factor: (images * factor, ()) for factor in factors}
    taken: dict[int, dict[str, Cost]] = {}
    for size, (count, added) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            chosen = (*SETTINGS, *settings, *added)
            make_project(Path(folder), count, -(-count // 3), height, width, chosen)
            taken[size] = {}
            for stage in STAGES:
                click.echo(f"{stage} with {count} photos, {' '.join(added)}", err=True)
                taken[size][stage] = cost(Path(folder), "-m", f"stages.{stage}")
    facts = {"images": images, "size": f"{width}x{height}", "settings": [*SETTINGS, *settings]}
    name = "K = " if clusters else "x "
    for measure in Cost._fields:
        rows = [_row(stage, measure, name, empty[stage], taken) for stage in STAGES]
        show(measure, {**facts, **machine()}, rows)


def cost(folder: Path, *arguments: str) -> Cost:
    """Measure a run of Python in a folder."""
    command = [sys.executable, "-c", MEASURE, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    before = _bytes(folder)
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise click.ClickException(f"{' '.join(arguments)} failed: {ran.stdout}{ran.stderr}")
    kibibytes, seconds = json.loads(ran.stdout.splitlines()[-1])
    return Cost(kibibytes * 1024 / 1e6, seconds, (_bytes(folder) - before) / 1e6)


def _bytes(folder: Path) -> int:
    files = (*(folder / "data").rglob("*"), *(folder / "results").rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file())


def exponent(costs: Mapping[int, float]) -> float | None:
    """The slope of log cost over log size, by least squares; none for one size or mere noise."""
    if len(costs) < 2 or min(costs.values()) <= SETTLED:
        return None
    slope, _ = np.polyfit(np.log(list(costs)), np.log(list(costs.values())), 1)
    return float(slope)


def _row(
    stage: str, measure: str, name: str, empty: Cost, taken: Mapping[int, Mapping[str, Cost]]
) -> dict[str, Any]:
    costs = {size: getattr(stages[stage], measure) for size, stages in taken.items()}
    row: dict[str, Any] = {"stage": stage}
    if measure != "written":
        row["imports"] = round(getattr(empty, measure), 1)
    row |= {f"{name}{size}": round(value, 1) for size, value in costs.items()}
    if measure == "megabytes":
        ratio = costs[max(costs)] / costs[min(costs)]
        return {**row, "ratio": round(ratio, 3), "": "grows" if ratio > BOUND else ""}
    above = {s: c - (empty.seconds if measure == "seconds" else 0) for s, c in costs.items()}
    slope = exponent(above)
    if slope is None:
        return row
    return {**row, "exponent": round(slope, 2), "": "steep" if slope > STEEP else ""}


if __name__ == "__main__":
    main()
