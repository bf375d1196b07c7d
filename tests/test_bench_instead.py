"""What one may pick instead: every way sees the same patches and gives what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bench import instead
from bench.growth import Cost
from bench.rivals import dsm
from cache.features import Features
from stages.settings.params import load
from tests.conftest import Project, tables

DRAWN = ("--drawn", "60,8", "--side", "5", "--k", "3", "--vectors", "4")
ASKED = instead.Choices("context", "60,8", 100, 5, 3, 1.0, 4)


def within(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ways are gone in this process, and the n-th takes 10 n seconds and MB."""
    gone: list[str] = []

    def cost(_: Path, flag: str, module: str, *arguments: str) -> Cost:
        assert (flag, module) == ("-m", "bench.instead")
        result = CliRunner().invoke(instead.main, arguments, catch_exceptions=False)
        assert result.exit_code == 0 and not result.stdout
        gone.append(arguments[-1].removeprefix("--way="))
        return Cost(10 * len(gone), 10 * len(gone), 0)

    monkeypatch.setattr(instead, "cost", cost)
    return gone


def test_every_way_is_gone_and_the_patches_are_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = within(monkeypatch)
    monkeypatch.setattr(instead, "import_ncut", lambda: None)
    monkeypatch.setattr(instead, "ncut", lambda rows, vectors, seed, degree: (rows, None))
    (table,) = tables(instead.main, *DRAWN)
    assert gone == [row["way"] for row in table["rows"]] == list(instead.WAYS)
    assert [row["MB"] for row in table["rows"]] == [10, 20, 30, 40]
    assert [row["processor seconds"] for row in table["rows"]] == [10, 10, 20, 30]


def test_a_package_that_is_not_there_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = within(monkeypatch)
    monkeypatch.setitem(sys.modules, "ncut_pytorch", None)
    (table,) = tables(instead.main, *DRAWN)
    (row,) = (row for row in table["rows"] if row["way"] not in gone)
    assert "the package ncut-pytorch" in row["note"] and "pip install" in row["note"]
    assert len(gone) == 3


def test_neighbours_are_those_of_brute_force() -> None:
    pictures = instead.pictures_of(ASKED)
    assert [one.tokens.shape for one in pictures] == [(25, 8), (25, 8)]  # of 60 patches
    rows = np.concatenate([one.tokens for one in pictures]).astype(np.float64)
    cosines = rows @ rows.T / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows, axis=1)[:, None]
    np.fill_diagonal(cosines, -1)
    expected = np.argsort(-cosines, axis=1)[:, :3]
    assert (np.sort(instead.graph(pictures, ASKED)) == np.sort(expected)).mean() > 0.95


def test_patches_of_a_cache_are_those_of_its_first_tiles(project: Project) -> None:
    project.made("context")
    cache = Features.open("data/features.zarr").beside("data/context.zarr")
    tiles = cache.tiles_of(load().train_split)
    first, second, third = cache.sizes(tiles)[:3]
    asked = ASKED._replace(drawn=None, patches=first + second + third - 1)
    pictures = instead.pictures_of(asked)
    assert [len(one.tokens) for one in pictures] == [first, second]
    for one, tile in zip(pictures, tiles, strict=False):
        np.testing.assert_array_equal(one.tokens, cache.tokens("context", tile))
        assert one.grid[0] * one.grid[1] == len(one.rgb) == len(one.tokens)
    for one, vectors in zip(pictures, instead.vectors_by_image(pictures, asked), strict=True):
        assert vectors.shape == (len(one.tokens), min(dsm.VECTORS, len(one.tokens) - 1))


def test_too_few_patches_are_refused() -> None:
    arguments = ("--drawn", "20,8", "--side", "5", "--way", "our graph")
    result = CliRunner().invoke(instead.main, arguments)
    assert result.exit_code == 1 and "must fill one whole image" in result.output
