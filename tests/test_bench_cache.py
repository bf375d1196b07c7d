"""The measuring commands of the feature cache run at a tiny size and tell what they should."""

from __future__ import annotations

from pathlib import Path

import click

from bench import extraction, reading
from tests.conftest import tables


def cases(command: click.Command, *options: str) -> dict[str, dict]:
    """The rows of a command's table by case."""
    (table,) = tables(command, *options)
    assert table["numpy"] and table["processor"]
    return {row["case"]: row for row in table["rows"]}


def test_reading_compares_the_cache_with_a_memory_map(tmp_path: Path) -> None:
    sizes = ["--tiles", "6", "--grid", "4", "--channels", "64", "--batch", "3"]
    rows = cases(
        reading.main, *sizes, "--shard-tokens", "32", "--repeats", "2", "--writes", "1",
        "--folder", str(tmp_path),
    )  # fmt: skip
    for levels in (1, 3):
        assert rows[f"read memmap, {levels} level(s)"]["times the memory map"] == [1, 1, 1]
        assert rows[f"read float16, {levels} level(s)"]["times the memory map"][0] > 0
    assert rows["write memmap"]["megabytes"] > 6 * 16 * 64 * 3 * 2 / 1e6
    assert {"dvc add float16", "md5 int8"} <= set(rows)
    assert not list(tmp_path.iterdir())


def test_extraction_is_compared_with_the_bare_model(weights: Path) -> None:
    rows = cases(
        extraction.main, "--model", "test_vit", "--weights", str(weights), "--count", "3",
        "--short-side", "96", "--batch", "2", "--repeats", "1", "--device", "cpu",
    )  # fmt: skip
    assert rows["bare forward"]["rate / bare"] == [1, 1, 1]
    assert rows["extraction"]["rate / bare"][0] > 0
    assert rows["part: write"]["ms/image"] > 0
