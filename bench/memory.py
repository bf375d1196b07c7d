"""Peak memory of every stage while the data set grows: it must not grow along."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from bench.project import REPOSITORY, make_project
from bench.timing import machine, show

STAGES = ("prepare", "extract", "context", "graph", "train", "segment", "eval", "report")
BOUND = 1.10  # the largest data set may take this much more than the smallest
# What does not follow from the number of images, and small enough that the smallest data set
# already fills it: a shard, a group, the sample of K-means (16 x 600 patches).
SETTINGS = (
    "clusters=16",
    "extract.train.short_side=480",
    "train.epochs=1",
)
# A process starts with the peak of the one that starts it: so a small one stands in between.
MEASURE = """
import os, sys
pid = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


@click.command()
@click.option("--images", default=24, show_default=True, help="Training photos of the smallest.")
@click.option("--height", default=240, show_default=True, help="Of a photo, in pixels.")
@click.option("--width", default=320, show_default=True, help="Of a photo, in pixels.")
@click.option("--factor", "factors", default=[1, 4, 16], show_default=True, multiple=True)
@click.option("-S", "settings", multiple=True, help="Set a parameter: key=value, repeatable.")
def main(
    images: int, height: int, width: int, factors: tuple[int, ...], settings: tuple[str, ...]
) -> None:
    """Run every stage on drawn data sets of growing size and compare their peak RSS.

    One process a stage; where it starts others, the largest of them counts. The validation split
    has a third of the training photos. All else is fixed, see SETTINGS and -S. The libraries alone
    take what stands below "imports": with CUDA's, most of it.
    """
    peaks: dict[str, dict[int, float]] = {stage: {} for stage in STAGES}
    imports = {s: peak_megabytes(Path.cwd(), "-c", f"import stages.{s}") for s in STAGES}
    for factor in factors:
        with tempfile.TemporaryDirectory() as folder:
            count = images * factor
            make_project(Path(folder), count, -(-count // 3), height, width, (*SETTINGS, *settings))
            for stage in STAGES:
                click.echo(f"{stage} with {count} photos", err=True)
                peaks[stage][factor] = peak_megabytes(Path(folder), "-m", f"stages.{stage}")
    rows = [_row(stage, imports[stage], peaks[stage]) for stage in STAGES]
    facts = {"images": images, "size": f"{width}x{height}", "settings": [*SETTINGS, *settings]}
    show("memory", {**facts, **machine()}, rows)


def peak_megabytes(folder: Path, *arguments: str) -> float:
    """Greatest resident memory of a run of Python in a folder, in MB (10^6 bytes)."""
    command = [sys.executable, "-c", MEASURE, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise click.ClickException(f"{' '.join(arguments)} failed: {ran.stdout}{ran.stderr}")
    kibibytes = int(ran.stdout.split()[-1])
    return kibibytes * 1024 / 1e6


def _row(stage: str, imports: float, peaks: dict[int, float]) -> dict:
    least, most = min(peaks), max(peaks)
    ratio = peaks[most] / peaks[least]
    return {
        "stage": stage,
        "imports, MB": round(imports),
        **{f"{factor}x, MB": round(peak) for factor, peak in peaks.items()},
        f"{most}x / {least}x": round(ratio, 3),
        "": "grows" if ratio > BOUND else "",
    }


if __name__ == "__main__":
    main()
