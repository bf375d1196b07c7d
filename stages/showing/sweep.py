"""A sweep: the experiments that `dvc exp show --csv` lists, drawn against what they varied."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import click

from cache.results import MEASURES, read_rows
from cache.segments import PREDICTORS, SEMI_SUPERVISED
from cache.store.errors import InputError
from stages.settings.params import is_parameter
from stages.showing.drawing import Picture, sweep_chart
from stages.showing.pages import render, write_pages

EXPERIMENTS = ("branch_base", "branch_commit")  # rows of finished experiments, in DVC's words
SEED = "seed"  # repeats an experiment: it is averaged over, unless nothing else was varied
NOTES = (
    "Experiments of `dvc exp show --csv`. Charts: mIoU, a dot for each experiment, lines through "
    "the means.",
    "Scores are those of results/miou.json and accuracy.json: majority_iou, fitted on the training "
    "split where it has labels. Of several data sets it is the first one.",
    "Table: the mean over all experiments with that value and, in brackets, greatest - least. "
    "Where several parameters vary, that is over the others too.",
)


class Point(NamedTuple):
    """One value of a parameter: the scores of its experiments, by measure and predictor."""

    value: str
    experiments: int
    scores: dict[str, dict[str, list[float]]]


def draw_sweep(path: str, out: str) -> None:
    """Draw the experiments of a CSV as one HTML page.

    Args:
        path: what `dvc exp show --csv` printed.
        out: folder of the page and its pictures to write.

    Raises:
        InputError: the file is missing, has no finished experiment, or nothing varies in it.
    """
    rows = read_experiments(path)
    learned = all(score(row, SEMI_SUPERVISED, MEASURES[0]) for row in rows)
    names = (*PREDICTORS, SEMI_SUPERVISED) if learned else PREDICTORS
    sweeps = {key: points(rows, key, names) for key in varied(rows, path)}
    charts = [
        Picture(f"sweep_{key}", key, sweep_chart([p.value for p in line], by_predictor(line)))
        for key, line in sweeps.items()
    ]
    shown = {"facts": {"experiments": len(rows)}, "notes": NOTES, "predictors": names}
    page = render(
        "sweep.html", title="eigenseg: a sweep", charts=charts, sweeps=sweeps,
        measures=MEASURES, **shown,
    )  # fmt: skip
    write_pages(out, {"index.html": page}, charts)
    for key, line in sweeps.items():
        click.echo(
            f"{key}: {len(line)} values, {sum(point.experiments for point in line)} experiments"
        )
    click.echo(f"Open {Path(out) / 'index.html'}.")


def read_experiments(path: str) -> list[dict[str, str]]:
    """The finished experiments, one row each: the workspace and commits are not among them.

    Raises:
        InputError: the file is missing, or no experiment has scores.
    """
    way_out = "run `dvc queue start`, wait for it, then `dvc exp show --csv` again."
    rows = read_rows(path, way_out)
    experiments = [row for row in rows if row.get("typ") in EXPERIMENTS]
    wanted = list(product(PREDICTORS, MEASURES))
    scored = [row for row in experiments if all(row.get(score(row, *pair)) for pair in wanted)]
    if not scored:
        raise InputError(
            f"{path} must hold finished experiments with the scores of miou.json, found none "
            f"among {len(rows)} rows: {way_out}"
        )
    return scored


def score(row: Mapping[str, str], predictor: str, measure: str) -> str:
    """The column of a predictor's score: that of the first data set."""
    wanted = re.compile(rf".*\b{measure}\.json:[^:]+\.{predictor}")
    return next((name for name in row if wanted.fullmatch(name) and row[name]), "")


def varied(rows: Sequence[dict[str, str]], path: str) -> list[str]:
    """The parameters that take more than one value, the seed only where no other does.

    Raises:
        InputError: none does.
    """
    keys = [key for key in rows[0] if is_parameter(key) and len({row[key] for row in rows}) > 1]
    if not keys:
        raise InputError(
            f"{path} must hold experiments that differ in a parameter, found {len(rows)} alike: "
            "queue some with `dvc exp run --queue -S 'graph.alpha=0.0,0.3'`."
        )
    return [key for key in keys if key != SEED] or keys


def points(rows: Sequence[dict[str, str]], key: str, names: Sequence[str]) -> list[Point]:
    """One point for each value of a parameter, numbers in ascending order, texts after them."""
    values: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        values.setdefault(row[key], []).append(row)
    return [
        Point(value or "null", len(values[value]), scores(values[value], names))
        for value in sorted(values, key=rank)
    ]


def scores(
    rows: Sequence[dict[str, str]], names: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """The scores of every experiment, by measure and predictor."""
    return {
        measure: {name: [float(row[score(row, name, measure)]) for row in rows] for name in names}
        for measure in MEASURES
    }


def rank(value: str) -> tuple[bool, float, str]:
    """Return the sort key of a value."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


def by_predictor(line: Sequence[Point]) -> dict[str, list[list[float]]]:
    """Collect the chart of a parameter: for each value the mIoU of every experiment."""
    found = [point.scores[MEASURES[0]] for point in line]
    return {name: [one[name] for one in found] for name in found[0]}
