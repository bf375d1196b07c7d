"""A sweep: which rows of DVC's table count, what varies, and the page that shows it."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import stages
from cache.segments import PREDICTORS
from cache.store.errors import InputError
from stages.showing.sweep import points, read_experiments, varied


def row(typ: str, alpha: str, seed: str, miou: float | None, **others: str) -> dict[str, Any]:
    """A row as `dvc exp show --csv` writes it; ours_kmeans and kmeans are 1 and 2 lower."""
    scores = {
        f"results/{measure}.json:scenes.{name}": "" if miou is None else miou - less + 20 * i
        for less, name in enumerate(PREDICTORS)
        for i, measure in enumerate(("miou", "accuracy"))
    }
    params = {"seed": seed, "clusters": "64", "graph.alpha": alpha, "train.beta": ""}
    return {"typ": typ, "State": "Success", **scores, **params, "stages/train.py": "1f", **others}


ROWS = [
    row("baseline", "0.05", "0", 90.0),
    row("branch_base", "0.3", "0", 40.0),
    row("branch_commit", "0.3", "1", 44.0),
    row("branch_commit", "0.0", "0", 39.0, **{"stages/train.py": "2e"}),
    row("branch_commit", "0.0", "1", 38.0),
    row("branch_base", "1e-05", "0", None, State="Queued"),
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_finished_experiments_count_and_nothing_else(tmp_path: Path) -> None:
    rows = read_experiments(write(tmp_path / "sweep.csv", ROWS))
    scores = [float(found["results/miou.json:scenes.ours"]) for found in rows]
    assert scores == [40, 44, 39, 38]


def test_what_varies_is_a_parameter_and_the_seed_repeats_it(tmp_path: Path) -> None:
    rows = read_experiments(write(tmp_path / "sweep.csv", ROWS))
    assert varied(rows, "") == ["graph.alpha"]
    assert varied(rows[:2], "") == ["seed"]  # where nothing else varies
    with pytest.raises(InputError, match=r"must hold experiments that differ .* found 1 alike"):
        varied(rows[:1], "sweep.csv")


def test_points_are_in_order_with_all_their_experiments(tmp_path: Path) -> None:
    more = row("branch_commit", "", "0", 30.0)
    text = row("branch_commit", "auto", "0", 31.0)
    rows = read_experiments(write(tmp_path / "sweep.csv", [*ROWS, text, more]))
    line = points(rows, "graph.alpha", PREDICTORS)
    assert [point.value for point in line] == ["0.0", "0.3", "null", "auto"]
    assert [point.experiments for point in line] == [2, 2, 1, 1]
    assert line[1].scores["miou"]["kmeans"] == [38.0, 42.0]
    assert line[0].scores["accuracy"]["ours"] == [59.0, 58.0]


def test_the_page_has_means_and_spreads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "sweep.csv", ROWS)
    result = CliRunner().invoke(stages.main, ["report", "--sweep", path, "--out", "drawn"])
    assert result.exit_code == 0, result.output
    assert "graph.alpha: 2 values, 4 experiments" in result.output
    page = Path("drawn/index.html").read_text()
    mean = statistics.fmean([40.0, 44.0])
    assert f">{mean:.1f} (4.0)<" in page and ">38.5 (1.0)<" in page
    assert Path("drawn/sweep_graph.alpha.png").stat().st_size > 1000


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[-1:]], ids=["baseline", "queued"])
def test_without_finished_experiments_the_way_out_is_told(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    path = write(tmp_path / "sweep.csv", rows)
    result = CliRunner().invoke(stages.main, ["report", "--sweep", path])
    assert result.exit_code == 1
    assert "found none among 1 rows: run `dvc queue start`" in result.output
    with pytest.raises(InputError, match="cannot be read"):
        read_experiments(str(tmp_path / "absent.csv"))
