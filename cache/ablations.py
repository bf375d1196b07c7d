"""The cells of an ablation: for each setting and seed one JSON file with its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from cache.artefact import fingerprint, read_json, write_json
from cache.errors import InputError
from cache.params import Params

# Sections of params.yaml: a cell has its own of the first, all share the others and the features.
VARIED = ("clusters", "context", "graph", "head", "train", "kmeans", "segment")
SHARED = ("dataset", "datasets")

_RUN = "run `dvc repro ablations/dvc.yaml`"


class Cell(NamedTuple):
    """The scores of one setting and seed.

    Attributes:
        key: dotted key of params.yaml that was varied; None for the values of params.yaml.
        value: what it was set to; ``default`` is its value in params.yaml.
        seed: of the run.
        base: `base_of` the params.yaml around which it was varied.
        metrics: as in metrics.json.
    """

    key: str | None
    value: Any
    default: Any
    seed: int
    base: str
    metrics: dict[str, dict[str, Any]]


def base_of(chosen: Params) -> str:
    """Fingerprint of all that every cell takes from params.yaml: all but the seed."""
    return fingerprint("ablation", chosen.model_dump(include={*VARIED, *SHARED}))


def write_cell(path: str | Path, cell: Cell) -> None:
    """Write one cell."""
    write_json(path, cell._asdict())


def read_cells(folder: str | Path, base: str) -> list[Cell]:
    """The cells in a folder, in the order of their names.

    Raises:
        InputError: there is none, a file is no cell, or it was made around another params.yaml.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise InputError(f"{folder} must hold cells of an ablation, found none: {_RUN} first.")
    return [_read_cell(path, base) for path in paths]


def _read_cell(path: Path, base: str) -> Cell:
    way_out = f"delete it and {_RUN} again."
    try:
        cell = Cell(**read_json(path, way_out))
    except TypeError as error:
        raise InputError(f"{path} is no cell of an ablation: {way_out}") from error
    if cell.base != base:
        raise InputError(
            f"{path} must belong to these parameters ({base}), found those of another params.yaml "
            f"({cell.base}): {way_out}"
        )
    return cell
