"""Draw the charts of the documents from docs/data/*.csv: ``python docs/charts.py``."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).parent
DATA, IMAGES = DOCS / "data", DOCS / "images"
NAMES = {"scenes": "Drawn scenes", "camvid": "CamVid", "voc_animals": "voc_animals"}
OURS, OTHER, THIRD, GREY = "#0072B2", "#E69F00", "#009E73", "#8a8a8a"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "eigenseg",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
}
Row = dict[str, str]


def read(name: str, **wanted: str) -> list[Row]:
    """Read the rows of a table of docs/data that hold the wanted values."""
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def dots(ax: Axes, rows: Sequence[Row], label: str, colours: Sequence[str]) -> None:
    """Draw means as dots, one a row, on a line as long as greatest - least over the seeds."""
    places = range(len(rows))[::-1]
    means = [float(row["miou"]) for row in rows]
    halves = [float(row["miou_spread"] or 0) / 2 for row in rows]
    ax.hlines(
        places,
        [m - h for m, h in zip(means, halves, strict=True)],
        [m + h for m, h in zip(means, halves, strict=True)],
        colors=colours,
    )
    ax.scatter(means, places, c=colours, zorder=3)
    ax.set_yticks(places, [row[label] for row in rows])
    ax.set_xlabel("mIoU, %")
    ax.grid(axis="x", alpha=0.3)
    ax.set_ylim(-0.6, len(rows) - 0.4)


def ladder() -> Figure:
    """What each step adds, by data set."""
    steps = [row["step"] for row in read("ladder", dataset="scenes")][:5]
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for ax, (name, title) in zip(axes, NAMES.items(), strict=True):
        rows = [row for row in read("ladder", dataset=name) if row["step"] in steps]
        dots(ax, rows, "step", [OURS if row["step"] == "ours" else GREY for row in rows])
        ax.set_title(title)
    return figure


def seeds() -> Figure:
    """Each seed of the paired comparisons as a dot."""
    rows = read("leads")
    names = list(dict.fromkeys(row["comparison"] for row in rows))
    figure = Figure(figsize=(8, 1.8), layout="constrained")
    ax = figure.subplots()
    for place, name in enumerate(names[::-1]):
        leads = [float(row["miou"]) for row in rows if row["comparison"] == name]
        ax.scatter(leads, [place] * len(leads), c=OURS, alpha=0.7)
        ax.scatter([sum(leads) / len(leads)], [place], c="black", marker="|", s=200)
    ax.axvline(0, color=GREY, lw=1)
    ax.set_yticks(range(len(names)), names[::-1])
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.set_xlabel("difference in mIoU, seed by seed; the bar is the mean")
    return figure


def mappings() -> Figure:
    """Mappings given by the scored labels and fitted on the training split, side by side."""
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    predictors = ("ours", "ours_kmeans", "kmeans")
    for ax, (name, title) in zip(figure.subplots(1, 3), NAMES.items(), strict=True):
        for shift, (origin, colour) in enumerate((("oracle", OURS), ("train", OTHER))):
            rows = read("scores", dataset=name, matching="majority_iou", fitted_on=origin)
            values = {row["predictor"]: row for row in rows}
            heights = [float(values[one]["miou"]) for one in predictors]
            spreads = [float(values[one]["miou_spread"]) / 2 for one in predictors]
            at = [place + 0.4 * shift for place in range(3)]
            label = {"oracle": "oracle", "train": "fitted on the training split"}[origin]
            ax.bar(at, heights, 0.38, color=colour, yerr=spreads, ecolor=GREY, label=label)
        ax.set_xticks([0.2, 1.2, 2.2], predictors)
        ax.set_title(title)
        ax.set_ylabel("mIoU, %")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def sweeps() -> Figure:
    """Two sweeps over the drawn scenes."""
    figure = Figure(figsize=(8, 1.9), layout="constrained")
    names = ("head.levels", "train.discriminant.clusters")
    for ax, name in zip(figure.subplots(1, 2), names, strict=True):
        rows = read("sweeps", parameter=name, matching="majority_iou", fitted_on="oracle")
        defaults = ("context", "32")
        dots(ax, rows, "value", [OURS if row["value"] in defaults else GREY for row in rows])
        ax.set_title(f"{name} (default in blue)")
    return figure


def segments() -> Figure:
    """As many segments as classes, under a Hungarian mapping."""
    figure = Figure(figsize=(8, 2.9), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for ax, (name, title) in zip(axes, NAMES.items(), strict=True):
        rows = read("as_many_segments", dataset=name)
        dots(ax, rows, "method", [OURS if "ours" in row["method"] else GREY for row in rows])
        ax.set_title(f"{title}, {rows[0]['segments']}")
    return figure


def speed() -> Figure:
    """Seconds of each stage when a parameter changes, and of a training step."""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = [row for row in read("wall_time") if row["stage"] != "all"]
    runs = list(dict.fromkeys(row["run"] for row in rows))[::-1]
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    past = [0.0] * len(runs)
    for number, stage in enumerate(stages):
        found = {row["run"]: float(row["seconds"]) for row in rows if row["stage"] == stage}
        widths = [found[run] for run in runs]
        left.barh(runs, widths, left=past, color=mpl.colormaps["tab10"](number), label=stage)
        past = [a + b for a, b in zip(past, widths, strict=True)]
    left.set_xlabel("seconds of `dvc repro`, CamVid")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=9, fontsize=7)
    heads = ["paper, width 1152", "default"]
    for shift, (measure, colour) in enumerate((("online, s", GREY), ("cached, s", OURS))):
        found = {
            row["head"]: float(row["median"]) for row in read("training_step", measure=measure)
        }
        at = [place - 0.4 * shift for place in range(2)]
        right.barh(at, [found[head] for head in heads], 0.38, color=colour, label=measure[:-3])
    right.set_yticks([-0.2, 0.8], heads)
    right.set_xlabel("seconds of a training step")
    right.legend(fontsize=7)
    return figure


def few_labels() -> Figure:
    """Curves of few labels: mean mIoU over draws and seeds against the number of images."""
    rows = read("few_labels")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    numbers = sorted(
        {row["n"] for row in rows}, key=lambda n: float("inf") if n == "all" else int(n)
    )
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for ax, name in zip(axes, names, strict=True):
        for method in methods:
            found = [
                (numbers.index(n), [float(row["miou"]) for row in rows
                 if (row["dataset"], row["method"], row["n"]) == (name, method, n)])
                for n in numbers
            ]  # fmt: skip
            curve = [(at, sum(values) / len(values)) for at, values in found if values]
            if curve:
                ax.plot(*zip(*curve, strict=True), marker="o", ms=3, label=method)
        ax.set_xticks(range(len(numbers)), numbers)
        ax.set_title(NAMES.get(name, name))
        ax.set_xlabel("labelled images")
    axes[0].set_ylabel("mIoU, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


BOXES = {  # stage or store: column, row
    "photos": (0, 1), "prepare": (1, 1), "index.csv": (2, 1), "extract": (3, 1),
    "features.zarr": (4, 1), "context": (4, 0), "context.zarr": (5, 0), "graph": (5, 1),
    "graph.h5": (6, 1), "train": (6, 0), "head/": (7, 0), "segment": (7, 1),
    "segments.h5": (7, 2), "labels.csv": (2, 3), "eval": (6, 2), "scores": (5, 2),
    "report": (4, 2), "atlas": (3, 2),
}  # fmt: skip
STAGES = ("prepare", "extract", "context", "graph", "train", "segment", "eval", "report")
ARROWS = [
    ("photos", "prepare"), ("prepare", "index.csv"), ("index.csv", "extract"),
    ("extract", "features.zarr"), ("features.zarr", "context"), ("context", "context.zarr"),
    ("features.zarr", "graph"), ("context.zarr", "graph"), ("graph", "graph.h5"),
    ("graph.h5", "train"), ("context.zarr", "train"), ("train", "head/"), ("head/", "segment"),
    ("segment", "segments.h5"), ("segments.h5", "eval"), ("prepare", "labels.csv"),
    ("labels.csv", "eval"),
    ("eval", "scores"), ("scores", "report"), ("report", "atlas"),
]  # fmt: skip


def dag() -> Figure:
    """The stages, in blue, and what they leave on disk."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(-0.5, 7.5), ylim=(3.3, -0.4))
    ax.axis("off")
    for name, (x, y) in BOXES.items():
        stage = name in STAGES
        box = {"boxstyle": "round", "fc": OURS if stage else "#eeeeee", "ec": "none"}
        ax.text(x, y, name, ha="center", va="center", bbox=box, color="w" if stage else "k")
    for start, end in ARROWS:
        upright = BOXES[start][0] == BOXES[end][0]
        gap = 10 if upright else 30
        arrow = {"arrowstyle": "->", "color": GREY, "shrinkA": gap, "shrinkB": gap}
        ax.annotate("", BOXES[end], BOXES[start], arrowprops=arrow)
    return figure


CHARTS: dict[str, Callable[[], Figure]] = {
    chart.__name__: chart for chart in (ladder, seeds, mappings, sweeps, segments, speed, dag)
}


def main(folder: Path = IMAGES) -> None:
    """Write every chart as SVG; that of few labels only where its figures are at hand."""
    charts = dict(CHARTS)
    if (DATA / "few_labels.csv").exists():
        charts["few_labels"] = few_labels
    with mpl.rc_context(STYLE):
        for name, draw in charts.items():
            draw().savefig(folder / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
