"""How many names and keys the atlas asks for: a person who knows each cluster's class, simulated.

The person goes through the clusters in the atlas's order and gives each the class that most of its
labelled pixels have, with the fewest keys: Enter alone for the name given last, else as many
letters as it takes until the arrow completes a name given before, else the whole name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from cache.results import read_mappings

WANTED = (0.5, 0.8, 0.9, 0.95, 0.99)  # of the pixels
MATCHING = "majority_count"


@click.command()
@click.option("--results", default="results", show_default=True, help="Folder of the results.")
def main(results: str) -> None:
    """Count names and keys until a share of the pixels is named.

    Reads clusters.html of the report and mapping.json. Prints a table.
    """
    data = page_data(Path(results, "report/clusters.html").read_text())
    mapping = next(iter(read_mappings(Path(results, "mapping.json")).values()))
    codes = mapping.clusters[data["predictor"]][MATCHING]
    share = np.array([cluster["share"] for cluster in data["clusters"]])
    names = [mapping.classes[codes[cluster["id"]]] for cluster in data["clusters"]]
    keys = np.cumsum(keys_of(names))
    click.echo("| pixels named | clusters, in the atlas's order | keys | clusters, largest first |")
    click.echo("|---|---|---|---|")
    for wanted in WANTED:
        steps, least = (reached(values, wanted) for values in (share, np.sort(share)[::-1]))
        click.echo(f"| {wanted:.0%} | {steps} of {len(share)} | {keys[steps - 1]} | {least} |")


def page_data(page: str) -> dict[str, Any]:
    """What an atlas holds."""
    start = '<script id="data" type="application/json">'
    return json.loads(page.partition(start)[2].partition("</script>")[0])


def reached(share: np.ndarray, wanted: float) -> int:
    """How many of the first shares it takes to reach a sum."""
    return int(np.searchsorted(np.cumsum(share), wanted * share.sum() - 1e-9)) + 1


def keys_of(names: Sequence[str]) -> list[int]:
    """Keys pressed for each name, Enter included."""
    given: list[str] = []
    keys = []
    for i, name in enumerate(names):
        if i and name == names[i - 1]:
            keys.append(1)
            continue
        typed = len(name)
        for n in range(1, len(name)):
            first = next((old for old in given if old.startswith(name[:n])), None)
            if first == name:
                typed = min(typed, n + 1)
                break
        keys.append(typed + 1)
        given += [name] if name not in given else []
    return keys


if __name__ == "__main__":
    main()
