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
    labelled: Mapping[str, Any] | None = None,
) -> None:
    """Print the metrics of one data set as in metrics.json, and how each mapping came about.

    Args:
        train, evaluated: names of the splits that mappings may be fitted on, and that is scored.
        learned: the split that the head was trained on.
        labelled: facts of a head about the labels that it learned from.
    """
    held: list[str] = []
    for variant, scored in metrics.items():
        held = print_table(f"{dataset}, protocol {variant}", scored, evaluated)
    explain(held, train, evaluated, learned)
    if labelled:
        Console().print(learned_from(labelled))


def learned_from(labelled: Mapping[str, Any]) -> str:
    """Say which labels training has seen."""
    return f"semi_supervised: trained with {labelled['said']}; it says classes without a mapping."


def print_table(
    heading: str, metrics: Mapping[str, Mapping[str, Any]], evaluated: str
) -> list[str]:
    """Print the scores of a protocol, perhaps with a CRF; what its mappings are fitted on."""
    scored = [
        (key, value)
        for entry in metrics.values()
        for key, value in entry.items()
        if isinstance(value, Mapping)
    ]
    matchings = [*dict.fromkeys(key for key, _ in scored)]
    origins = held = [*dict.fromkeys(origin for _, value in scored for origin in value)]
    table = Table(
        title=f"{heading}, split {evaluated}"
        + ": mIoU/accuracy in % (classes covered)" * bool(held)
    )
    for heading in ("predictor", "used/K", *["matching"] * bool(held), *origins):
        table.add_column(heading, justify="left" if heading in _TEXT else "right")
    for name, entry in metrics.items():
        head = (name, f"{entry['clusters_used']}/{entry['k']}")
        for matching in (key for key in matchings if key in entry):
            table.add_row(*head, matching, *(_score(entry[matching].get(o)) for o in origins))
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


def _score(score: dict[str, Any] | None) -> str:
    if score is None:
        return ""
    return f"{score['miou']:.1f}/{score['accuracy']:.1f} ({score['classes_covered']})"
