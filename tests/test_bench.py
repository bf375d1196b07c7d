"""The contest and the search: what they print agrees with the stages and with references."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bench import contest, knn, opponents
from bench.opponents import Spectrum
from pipeline.features.whitening import unit_rows
from tests.conftest import Project, tables

MATCHED = ("majority_iou", "hungarian")


def around_axes(each: int, channels: int, axes: int) -> np.ndarray:
    """Unit rows near so many axes, one after the other: float32 ``(axes * each, channels)``."""
    rng = np.random.default_rng(5)
    rows = np.repeat(np.eye(channels)[:axes], each, axis=0)
    return unit_rows((rows + rng.normal(scale=0.1, size=rows.shape)).astype(np.float32))


def test_trained_heads_and_kmeans_score_as_the_stages_say(project: Project) -> None:
    """In every protocol; the first one is not what is trained on."""
    plan = {"short_side": None, "crop": None, "window": None, "stride": None}
    plans = {
        "centre": plan | {"short_side": 90, "crop": 90},
        "full": plan,
        "sliding": plan | {"short_side": 100, "window": 60, "stride": 40},
    }
    project.set("protocols", plans)
    project.set("extract.eval", list(plans))
    project.set("kmeans.level", "context")
    project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval")
    (metrics,) = json.loads(Path("results/metrics.json").read_text()).values()
    asked = ["--head", "data/head", "kmeans:context", "--clusters", "6", "--seeds", "1"]
    for protocol in plans:
        (table,) = tables(contest.main, *asked, "--protocol", protocol)
        for predictor, entry in metrics[protocol].items():
            for matching in MATCHED:
                oracle = entry[matching]["oracle"]
                expected = pytest.approx([oracle["miou"], oracle["accuracy"]])
                assert table["rows"][predictor][0][matching] == expected
        assert table["rows"]["kmeans:context"] == table["rows"]["kmeans"]
    result = CliRunner().invoke(contest.main, [*asked, "--protocol", "fool"])
    assert result.exit_code and "holds the protocols centre, full, sliding" in result.output


def test_every_opponent_is_a_row_with_its_spread(project: Project) -> None:
    project.made("context")
    named = ["kmeans:last", "kmeans:last:4", "spectral:last:6", "probe:last"]
    sizes = ["--clusters", "4", "--patches", "100", "--k", "8", "--seeds", "2", "--epochs", "3"]
    result = CliRunner().invoke(contest.main, [*named, *sizes], catch_exceptions=False)
    rows = json.loads(result.output.splitlines()[-1])["rows"]
    assert list(rows) == named
    for name, seeds in rows.items():
        miou = [table["majority_iou"][0] for table in seeds]
        assert len(seeds) == 2 and all(0 < value <= 100 for value in miou)
        assert f"| {name} | {np.mean(miou):.1f} ({np.ptp(miou):.1f}) /" in result.output
    assert rows["kmeans:last"] != rows["kmeans:last:4"]  # the whitening is heard
    # Supervised on six images, it knows four flat colours better than any clusters do.
    probe, others = rows.pop("probe:last"), rows.values()
    best = max(table["hungarian"][1] for seeds in others for table in seeds)
    assert probe[0]["hungarian"][1] > best


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ("kmean:last", "such as kmeans:late:64; found 'kmean:last'"),
        ("ncut:last", "needs the package ncut-pytorch"),
    ],
)
def test_an_opponent_that_cannot_run_is_refused_before_any_has_run(
    monkeypatch: pytest.MonkeyPatch, project: Project, second: str, text: str
) -> None:
    project.made("context")
    monkeypatch.setitem(sys.modules, "ncut_pytorch", None)
    scored: list[object] = []
    monkeypatch.setattr(contest, "score", lambda *asked: scored.append(asked))
    result = CliRunner().invoke(contest.main, ["kmeans:last", second])
    assert result.exit_code and text in result.output
    assert not scored


def test_the_spectrum_is_that_of_the_random_walk() -> None:
    rows, k = around_axes(20, 12, 4), 15
    leading = opponents.spectrum(rows, k, 6, seed=0)
    # The graph by brute force: k best cosines of other rows, made symmetric.
    cosines = rows.astype(np.float64) @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    best = cosines >= np.sort(cosines, axis=1)[:, -k][:, None]
    directed = np.where(best, np.maximum(cosines, 0), 0)
    graph = (directed + directed.T) / 2
    walk = graph / graph.sum(axis=1, keepdims=True)
    scaled = leading.functions * leading.values
    np.testing.assert_allclose(walk @ leading.functions, scaled, atol=1e-4)
    expected = np.sort(np.linalg.eigvals(walk).real)[::-1][:6]
    np.testing.assert_allclose(leading.values, expected, atol=1e-4)


def test_eigenfunctions_reach_other_rows_by_weighted_means() -> None:
    rows = around_axes(20, 12, 4)
    queries, k = around_axes(23, 12, 4)[::3], 5
    leading: Spectrum = opponents.spectrum(rows, 15, 4, seed=0)
    expected = []
    for query in queries:
        cosines = rows @ query
        near = np.argsort(-cosines)[:k]
        weights = np.maximum(cosines[near], 0)
        expected.append(weights @ leading.functions[near] / weights.sum() / leading.values)
    np.testing.assert_allclose(opponents.extend(leading, queries, k), expected, atol=1e-5)
    opposite = opponents.extend(leading, -rows.sum(axis=0, keepdims=True) / 100, k)
    np.testing.assert_array_equal(opposite, 0)  # no neighbour with a cosine above 0


@pytest.mark.parametrize("embed", ["spectral", "ncut"])
def test_embeddings_keep_separated_groups_apart(embed: str) -> None:
    if embed == "ncut":
        pytest.importorskip("ncut_pytorch", reason="needs the extra ncut")
    fit = {
        "spectral": partial(opponents.spectral, k=15),
        "ncut": partial(opponents.ncut, degree=None),
    }[embed]
    rows = around_axes(60, 12, 4)
    own, extend = fit(rows, 4, 0)
    same = np.kron(np.eye(4), np.ones((60, 60))) > 0
    for functions in (own, extend(unit_rows(rows + np.float32(0.01)))):
        cosines = unit_rows(functions) @ unit_rows(functions).T
        assert cosines[same].min() > cosines[~same].max()


def test_the_search_is_measured_on_queries_that_did_not_set_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.graph.search.EXACT", 1000)
    (table,) = tables(knn.main, "--drawn", "6000,16", "--k", "5", "--recall", "0.9")
    assert table["cells"] > 1 and table["recall on the sample"] >= 0.9
    assert abs(table["on others"] - table["recall on the sample"]) < 0.05
    assert [row["what"] for row in table["rows"]] == ["exact search", "index", "search"]
    assert table["peak MB"] > 6000 * 16 * 4 / 1e6
    (table,) = tables(
        knn.main, *["--drawn", "900,16", "--k", "5", "--image", "30", "--clusters", "4"]
    )
    assert table["cells"] == 1 and table["on others"] > 0.99
    assert table["rows"][-1]["what"] == "K-means, 20 steps"
