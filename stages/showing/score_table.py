"""The table of scores for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_TEXT = ("predictor", "matching")


def oracle_alone(learned: str) -> str:
    """Why a data set has oracle mappings alone, where the head learned from another's split."""
    return (
        f"The head was trained on {learned}, another data set with other classes, so the mapping "
        "is an oracle."
    )


def print_scores(
    dataset: str,
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]],
    train: str,
    evaluated: str,
    learned: str,
) -> None:
    """Print the metrics of one data set as in metrics.json, and how each mapping came about.

    Args:
        train, evaluated: names of the splits that mappings may be fitted on, and that is scored.
        learned: the split that the head was trained on.
    """
    held: list[str] = []
    for variant, scored in metrics.items():
        held = print_table(f"{dataset}, protocol {variant}", scored, evaluated)
    explain(held, train, evaluated, learned)


def print_table(
    heading: str, metrics: Mapping[str, Mapping[str, Any]], evaluated: str
) -> list[str]:
    """Print the scores of a protocol, perhaps with a CRF; what its mappings are fitted on."""
    first = next(iter(metrics.values()))
    matchings = [key for key, value in first.items() if isinstance(value, Mapping)]
    held = first[matchings[0]] if matchings else {}
    origins = list(held)
    table = Table(
        title=f"{heading}, split {evaluated}"
        + ": mIoU/accuracy in % (classes covered)" * bool(held)
    )
    for heading in ("predictor", "used/K", *["matching"] * bool(held), *origins):
        table.add_column(heading, justify="left" if heading in _TEXT else "right")
    for name, entry in metrics.items():
        head = (name, f"{entry['clusters_used']}/{entry['k']}")
        for matching in matchings:
            table.add_row(*head, matching, *(_score(entry[matching][o]) for o in origins))
            head = ("", "")
        if not held:
            table.add_row(*head)
        table.add_section()
    Console().print(table)
    return origins


def explain(held: list[str], train: str, evaluated: str, learned: str) -> None:
    """Print how each mapping came about."""
    console = Console()
    if not held:
        console.print(f"The split {evaluated} has no labels: there is nothing to score.")
    if "oracle" in held:
        console.print(f"oracle: mapping fitted on the labels of {evaluated}, the ones scored here.")
    if held and learned != train:
        console.print(oracle_alone(learned))
    if "train" in held:
        console.print(f"train: mapping fitted on the labels of {train} only.")
    if "different" in held:
        console.print(
            f"typical, different, random: fitted on the labels of a few images of {train}, chosen "
            "without labels (random: mean of 5 draws)."
        )


def _score(score: dict[str, Any]) -> str:
    return f"{score['miou']:.1f}/{score['accuracy']:.1f} ({score['classes_covered']})"
