"""Quality and cost of names given on the atlas by a simulated person who sees only examples.

The person goes through the clusters in the atlas's order and gives each the class that covers most
of the examples shown (each example counts alike, by the shares of the classes in its region), with
the fewest keys: Enter alone for the name given last, else as many letters as it takes until Enter
means a name given before, else the whole name. Scores are at the resolution of the page.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from cache.index import read_index
from cache.labels import read_label, read_labels
from cache.names import UNNAMED, Correction, Names, Split, write_names
from cache.runs import unpack
from cache.segments import Segments
from pipeline.evaluation import UNMATCHED, confusion, count, majority_count, scores
from pipeline.maps.atlas import components, shrink
from stages.showing.planned import plan_of

WANTED = (0.5, 0.8, 0.9, 0.95, 0.99)  # of the pixels
IGNORE = 255
SHOWN = {
    "a fair sample": ("sample",),
    "typical and least typical": ("typical", "unusual"),
    "all of them": ("sample", "typical", "unusual"),
}


class Photo(NamedTuple):
    """A photo of the page: its split, ids of parts and classes (255 = none), ``(h, w)`` each."""

    name: str
    sha256: str
    split: str
    parts: np.ndarray
    labels: np.ndarray


class Shown(NamedTuple):
    """Content of an atlas, and the truth."""

    data: dict[str, Any]
    photos: list[Photo]
    classes: list[str]

    @property
    def clusters(self) -> int:
        """K."""
        return self.data["k"]

    def counts(self, split: str) -> np.ndarray:
        """Cells of a split by part and class: int64 ``(K * parts, C)``."""
        n = self.clusters * self.data["split"]
        tables = [
            count(photo.parts, photo.labels, n, len(self.classes))
            for photo in self.photos
            if photo.split == split
        ]
        return np.sum(tables, axis=0)


@click.command()
@click.option("--project", default=".", show_default=True, help="Folder in which it all ran.")
@click.option("--out", help="names.json to write: what the person says by the fair sample.")
@click.option("--corrections", default=0, help="Regions that the person corrects in it.")
def main(project: str, out: str | None, corrections: int) -> None:
    """Score the names that examples give, and count keys until a share of the pixels is named.

    Reads clusters.html of the report, the index, the label maps' manifest and the labels. Prints
    tables.
    """
    shown, train, evaluated = open_atlas(Path(project))
    print_scores(shown, train, evaluated)
    print_keys(shown)
    if out:
        write_names(out, as_names(shown, train, corrections))


def open_atlas(project: Path) -> tuple[Shown, str, str]:
    """The atlas and its labels; the splits that mappings are fitted on, and that is scored."""
    data = page_data((project / "results/report/clusters.html").read_text())
    rows = read_index(project / "data/index.csv")
    by_set, labels = read_labels(project / "data/labels.csv", rows)
    made = json.loads((project / "results/counts.json").read_text())["made_from"]
    photos = []
    by_content = {row.sha256: row for row in rows}
    with Segments(project / "data/segments.h5") as maps:
        plans = {row.id: plan_of(maps, row) for row in rows}
    for entry in data["photos"]:
        row = by_content[entry["sha256"]]
        label = labels[row.id]
        size = entry["height"], entry["width"]
        found = read_label(project / label.path, label.sha256, label.table)
        whole = plans[row.id].cut_label(found)
        parts = unpack(base64.b64decode(entry["runs"]), *size)
        photos.append(Photo(entry["name"], row.sha256, row.split, parts, shrink(whole, *size)))
    classes = list(next(iter(by_set.values())))
    return Shown(data, photos, classes), made["train"], made["eval"][0][1]


def print_scores(shown: Shown, train: str, evaluated: str) -> None:
    """Print what names by examples reach on the evaluated split, and what names from labels do."""
    fitted, scored = shown.counts(train), shown.counts(evaluated)
    whole = np.arange(len(fitted)) // shown.data["split"]
    by_cluster = np.zeros((shown.clusters, fitted.shape[1]), np.int64)
    np.add.at(by_cluster, whole, fitted)
    rows = {"labels of the training split": majority_count(by_cluster)[whole]}
    rows |= {name: by_examples(shown, kinds)[whole] for name, kinds in SHOWN.items()}
    rows["a fair sample, mixed clusters split"] = split_by_examples(shown)
    rows["labels, all clusters split"] = majority_count(fitted)
    click.echo("| names by | mIoU | accuracy |")
    click.echo("|---|---|---|")
    for name, codes in rows.items():
        found = scores(confusion(scored, codes))
        click.echo(f"| {name} | {found.miou:.2f} | {found.accuracy:.2f} |")


def by_examples(shown: Shown, kinds: Sequence[str]) -> np.ndarray:
    """The class of each cluster that covers most of its examples of some kinds: int64 ``(K,)``."""
    codes = np.full(shown.clusters, UNMATCHED)
    for cluster in shown.data["clusters"]:
        examples = [example for kind in kinds for example in cluster[kind]]
        codes[cluster["id"]] = name_of(shown, examples, cluster["id"], shown.data["split"])
    return codes


def split_by_examples(shown: Shown) -> np.ndarray:
    """The class of each part, by the part's own examples: int64 ``(K * parts,)``."""
    n = shown.data["split"]
    codes = np.repeat(by_examples(shown, SHOWN["a fair sample"]), n)
    for cluster in shown.data["clusters"]:
        for part in cluster["parts"]:
            id_ = cluster["id"] * n + part["part"]
            found = name_of(shown, part["sample"], id_, 1)
            codes[id_] = codes[id_] if found == UNMATCHED else found
    return codes


def name_of(shown: Shown, examples: Sequence[Sequence[int]], id_: int, divisor: int) -> int:
    """The class that covers most of some regions, each counting alike; `UNMATCHED` for none."""
    shares = np.zeros(len(shown.classes))
    for number, *box in examples:
        photo = shown.photos[number]
        inside = region_in(photo.parts // divisor == id_, box)
        seen = np.bincount(photo.labels[inside], minlength=IGNORE + 1)[: len(shares)]
        shares += seen / max(1, seen.sum())
    return int(shares.argmax()) if shares.any() else UNMATCHED


def region_in(own: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """The largest connected part of a mask ``(h, w)`` within a box: bool ``(h, w)``."""
    top, left, bottom, right = box
    n, parts = components(own[top:bottom, left:right].astype(np.int64))
    sizes = np.bincount(parts[own[top:bottom, left:right]], minlength=n)
    inside = np.zeros(own.shape, bool)
    inside[top:bottom, left:right] = parts == sizes.argmax()
    return inside


def as_names(shown: Shown, split: str, corrections: int) -> Names:
    """Collect what the person says by the fair sample, as a file of names.

    Args:
        split: whose photos are corrected: evenly spaced ones, in each the largest region that is
            wrong.
        corrections: regions to correct.
    """
    n, codes = shown.data["split"], by_examples(shown, SHOWN["a fair sample"])
    codes = np.where(codes == UNMATCHED, UNNAMED, codes)
    splits: dict[int, Split] = {}
    found: list[Correction] = []
    photos = [photo for photo in shown.photos if photo.split == split]
    for place in np.linspace(0, len(photos) - 1, min(corrections, len(photos))).round().astype(int):
        photo = photos[place]
        clusters = photo.parts.astype(np.int64) // n
        _, parts = components(clusters)
        for part in np.argsort(-np.bincount(parts.ravel())).tolist():
            cells = parts == part
            seen = np.bincount(photo.labels[cells], minlength=IGNORE + 1)[: len(shown.classes)]
            cluster = int(clusters[cells][0])
            if seen.any() and seen.argmax() != codes[cluster]:
                one = (photo.name, photo.sha256, cells, cluster, int(seen.argmax()))
                found.append(Correction(*one))
                break
    return Names(shown.data["head"], shown.classes, None, codes, splits, found, {})


def print_keys(shown: Shown) -> None:
    """Print how many clusters and keys it takes until shares of the pixels have names."""
    codes = by_examples(shown, SHOWN["a fair sample"])
    entries: Sequence[Mapping[str, Any]] = shown.data["clusters"]
    share = np.array([cluster["share"] for cluster in entries])
    keys = np.cumsum(keys_of([shown.classes[codes[cluster["id"]]] for cluster in entries]))
    click.echo(
        "\n| pixels named | clusters, in the atlas's order | keys | clusters, largest first |"
    )
    click.echo("|---|---|---|---|")
    for wanted in WANTED:
        steps, least = (reached(values, wanted) for values in (share, np.sort(share)[::-1]))
        click.echo(f"| {wanted:.0%} | {steps} of {len(share)} | {keys[steps - 1]} | {least} |")


def page_data(page: str) -> dict[str, Any]:
    """Read the data of an atlas."""
    start = '<script id="data" type="application/json">'
    return json.loads(page.partition(start)[2].partition("</script>")[0])


def reached(share: np.ndarray, wanted: float) -> int:
    """Count the first shares that it takes to reach a sum."""
    return int(np.searchsorted(np.cumsum(share), wanted * share.sum() - 1e-9)) + 1


def keys_of(names: Sequence[str]) -> list[int]:
    """Keys pressed for each name, Enter (or Shift and Enter) included."""
    keys: list[int] = []
    given: list[str] = []
    for i, name in enumerate(names):
        if i and name == names[i - 1]:
            keys.append(1)
            continue
        begun = [[old for old in given if old.startswith(name[:n])] for n in range(len(name) + 1)]
        if name in given:
            short = (n for n in range(1, len(name)) if begun[n][0] == name)
            keys.append(next(short, len(name)) + 1)
        else:
            keys.append(len(name) + 1 + bool(begun[-1]))
            given.append(name)
    return keys


if __name__ == "__main__":
    main()
