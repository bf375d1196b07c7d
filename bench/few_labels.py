"""A few labelled images: `semi_supervised` against all that could be fitted to them instead.

Every method sees the tokens of the head's input and the same labelled images of the training split.
Scores are on the evaluation split, at 2 x 2 points a patch: scores are interpolated there, labels
are read there.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cache import heads
from cache.features import Features
from cache.graphs import Graphs
from cache.index import read_index
from cache.labels import IGNORE, read_label, read_labels
from pipeline.evaluation import confusion, count, majority_count, scores
from pipeline.head import semi_supervised
from pipeline.head.head import Head
from pipeline.head.semi_supervised import Rows, fit_linear, joined
from pipeline.maps.atlas import shrink
from pipeline.maps.patches import patch_labels
from pipeline.segmenter import Segmenter
from stages.running.labelled import HALF, Knowledge, Patches, learn_labels, split_graphs
from stages.running.progress import track
from stages.settings.params import Params, load

POINTS = 2  # along the side of a patch
DRAWS = 5
LENGTH = 10.0  # of the tokens that the probe sees
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the probe, of which cross-validation chooses
FOLDS = 2
NEIGHBOURS = 10
MOST_ROWS = 10_000  # that the kNN classifier looks through
MOST_PROBED = 20_000  # labelled patches that the probe is fitted to
LEAST = 0.01  # added to probabilities before their logarithm
COLUMNS = ("dataset", "method", "n", "draw", "seed", "miou", "accuracy")

Scored = Callable[[Tensor, Tensor], Tensor]
"""Tokens and features of patches, float32 ``(n, c)`` and ``(n, d)``, to scores ``(n, classes)``."""


class Photo(NamedTuple):
    """A photo of the evaluation split: tokens, features, clusters, grid, labels at the points."""

    tokens: Tensor
    features: Tensor
    clusters: Tensor
    grid: tuple[int, int]
    label: np.ndarray


class Kept(Patches):
    """Training patches whose rows, clusters and labels are kept in memory."""

    def __init__(self, cache: Features, split: str, head: Head, levels: Sequence[int | str]):
        super().__init__(cache, split, head, levels)
        self.kept = [self._look(place) for place in track(range(len(self.tiles)), "reading train")]
        self.ids = np.concatenate([ids for _, ids in self.kept])

    def _look(self, place: int) -> tuple[Tensor, np.ndarray]:
        tokens, features, logits = self.read(place)
        return joined(tokens, features).half(), logits.argmax(dim=1).cpu().numpy()

    def rows(self, place: int) -> Tensor:
        """Return what the classifier looks at, of a tile."""
        return self.kept[place][0].float()


class Bench(NamedTuple):
    """All that a comparison needs."""

    patches: Kept
    labels: np.ndarray  # uint8 (patches,) of the whole training split
    image_of: np.ndarray  # int64 (patches,)
    photos: list[Photo]
    classes: list[str]
    graphs: list[tuple[np.ndarray, Tensor]]


@click.command()
@click.option("--head", "folders", multiple=True, default=("data/head",), help="One a seed.")
@click.option("--images", default=60, show_default=True, help="Evaluated, evenly spaced, at most.")
@click.option("--numbers", default="1,2,5,10,all", show_default=True, help="Of labelled images.")
@click.option("--draws", default=DRAWS, show_default=True, help="Of images at random.")
@click.option("--out", default="few_labels.csv", show_default=True, help="Table to append to.")
def main(folders: tuple[str, ...], images: int, numbers: str, draws: int, out: str) -> None:
    """Score every method on few labelled images, and print mean mIoU / accuracy.

    Reads data/ and params.yaml of the folder it runs in. What the table has is not done again.
    """
    params = load()
    for folder in folders:
        bench, seed = open_bench(params, Path(folder), images)
        done = {row[2:5] for row in table(out) if row[0] == params.dataset}
        for n, draw, chosen in draw_images(np.unique(bench.image_of), numbers, draws):
            if (n, draw, seed) in done:
                continue
            values = compared(bench, chosen, draw)
            keys = n, draw, seed
            append(out, [(params.dataset, m, *keys, *v) for m, v in values.items()])
            click.echo(f"seed {seed}, {n} images, draw {draw}: done", err=True)
    show([row for row in table(out) if row[0] == params.dataset])


def open_bench(params: Params, folder: Path, most: int) -> tuple[Bench, int]:
    """Read a trained head's project; give the head's seed as well."""
    state, fitted, manifest = heads.load_head(folder)
    head = Segmenter(manifest, state, fitted, torch.device("cpu")).head
    cache = Features.open("data/features.zarr").beside("data/context.zarr")
    levels, index = manifest["head"]["levels"], read_index("data/index.csv")
    classes, truth = read_labels("data/labels.csv", index)
    patches = Kept(cache, params.train_split, head, levels)
    entries = cache.tiles[patches.tiles]
    labels = [
        patch_labels(read_label(*truth[int(entry["image"])][1:]), entry)
        for entry in track(entries, "reading labels")
    ]
    image_of = np.repeat(entries["image"], np.diff(patches.firsts))
    with Graphs("data/graph.h5") as graphs:
        parts = [*split_graphs(graphs, patches, manifest["alpha"])]
    dataset, split = params.eval_sets[0]
    tiles = cache.tiles_of(split)
    places = np.linspace(0, len(tiles) - 1, min(most, len(tiles))).round().astype(int)
    photos = []
    for tile in track(tiles[places].tolist(), f"reading {split}"):
        entry = cache.tiles[tile]
        tokens = torch.from_numpy(cache.batch(levels, [tile])).float()
        with torch.inference_mode():
            features, logits = head(tokens, [len(tokens)])
        grid = int(entry["grid_h"]), int(entry["grid_w"])
        label = read_label(*truth[int(entry["image"])][1:])
        at = shrink(label, *(POINTS * side for side in grid))
        photos.append(Photo(tokens, features, logits.argmax(dim=1), grid, at))
    known = np.concatenate(labels)
    return Bench(patches, known, image_of, photos, classes[dataset], parts), manifest["seed"]


def draw_images(ids: np.ndarray, numbers: str, draws: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """Draw labelled images: how many, number of the draw, ids."""
    for n in numbers.split(","):
        for draw in range(1 if n == "all" else draws):
            order = np.random.default_rng(draw).permutation(ids)
            yield n, draw, order if n == "all" else order[: int(n)]


def compared(bench: Bench, chosen: np.ndarray, draw: int) -> dict[str, tuple[float, float]]:
    """Score every method on these labelled images: mIoU and accuracy in percent."""
    c, k = len(bench.classes), bench.patches.head.clusters
    labels = np.where(np.isin(bench.image_of, chosen), bench.labels, IGNORE).astype(np.uint8)
    rows, targets, images = known_rows(bench, labels)
    width = bench.patches.head.width
    tokens = F.normalize(rows[:, :-width])
    knn, generator = neighbours(tokens, targets, c, draw), np.random.default_rng(draw)
    probe = fit_probe(tokens, targets, images, c, generator)
    known = labels != IGNORE
    mapping = majority_count(count(bench.patches.ids[known], labels[known], k, c))
    voted = votes_by_cluster(bench, knn, c)
    knowledge = Knowledge(
        bench.classes, None, labels, np.full_like(labels, IGNORE), len(chosen), HALF, "few labels"
    )
    learned = learn_labels(bench.patches, knowledge, bench.graphs, draw)
    one_hot = torch.eye(c)[targets]
    sample = Rows(rows, one_hot).thinned(MOST_PROBED)
    empty = Rows(rows[:0], one_hot[:0])
    alone = semi_supervised.fit(sample, empty, width, len(chosen))
    methods: dict[str, Callable[[Photo], Tensor]] = {
        "kNN": lambda p: knn(p.tokens),
        "probe": lambda p: probe(p.tokens),
        "clusters": lambda p: one_hot_of(mapping, c)[p.clusters],
        "kNN and clusters": lambda p: (
            torch.log(knn(p.tokens) + LEAST) + torch.log(voted + LEAST)[p.clusters]
        ),
        "labelled patches alone": lambda p: alone.scores(joined(p.tokens, p.features)),
        "semi_supervised": lambda p: learned.scores(joined(p.tokens, p.features)),
    }
    return {name: scored(bench, method) for name, method in methods.items()}


def known_rows(bench: Bench, labels: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
    """Gather rows, classes and images of the labelled patches."""
    parts, known = [], labels != IGNORE
    for place in range(len(bench.patches.tiles)):
        own = bench.patches.part(known, place)
        if own.any():
            parts.append(bench.patches.rows(place)[torch.from_numpy(own)])
    return torch.cat(parts), torch.from_numpy(labels[known]).long(), bench.image_of[known]


def one_hot_of(mapping: np.ndarray, classes: int) -> Tensor:
    """Give clusters their class: float32 ``(K, classes)``, 0 for those without any."""
    table = torch.cat([torch.eye(classes), torch.zeros(1, classes)])
    return table[torch.from_numpy(mapping)]


def neighbours(tokens: Tensor, targets: Tensor, classes: int, seed: int) -> Callable:
    """Make a kNN classifier: the cosines of the nearest patches by class, which sum to 1."""
    kept = np.sort(np.random.default_rng(seed).permutation(len(tokens))[:MOST_ROWS])
    rows, known = half(tokens[kept]), targets[kept]
    k = min(NEIGHBOURS, len(rows))

    def votes(own: Tensor) -> Tensor:
        cosines, indices = torch.topk((half(F.normalize(own)) @ rows.T).float(), k, dim=1)
        sums = torch.zeros(len(own), classes)
        sums.scatter_add_(1, known[indices], cosines.clamp(min=LEAST))
        return sums / sums.sum(dim=1, keepdim=True)

    return votes


def half(rows: Tensor) -> Tensor:
    """Round rows to bfloat16, in which CPUs that have it multiply several times as fast."""
    return rows.to(torch.bfloat16)


def fit_probe(
    tokens: Tensor,
    targets: Tensor,
    images: np.ndarray,
    classes: int,
    generator: np.random.Generator,
) -> Callable[[Tensor], Tensor]:
    """Fit a linear probe; cross-validation over the labelled images chooses its penalty.

    One image alone is cut in two halves.
    """
    kept = np.sort(generator.permutation(len(tokens))[:MOST_PROBED])
    rows, own = LENGTH * tokens[kept], torch.eye(classes)[targets[kept]]
    _, order = np.unique(images[kept], return_inverse=True)
    if order.max() == 0:
        order = np.arange(len(kept)) * FOLDS // len(kept)
    folds = torch.from_numpy(order % FOLDS)

    def loss(penalty: float) -> float:
        found = 0.0
        for fold in range(FOLDS):
            weight, bias = fit_linear(rows[folds != fold], own[folds != fold], penalty)
            logits = F.linear(rows[folds == fold], weight, bias)
            found += float(F.cross_entropy(logits, own[folds == fold], reduction="sum"))
        return found

    fitted = fit_linear(rows, own, min(PENALTIES, key=loss))
    return lambda own: F.linear(LENGTH * F.normalize(own), *fitted)


def votes_by_cluster(bench: Bench, knn: Callable[[Tensor], Tensor], classes: int) -> Tensor:
    """Average the votes of kNN in each cluster over training images: ``(K, classes)``."""
    patches = bench.patches
    sums = torch.zeros(patches.head.clusters, classes)
    pick = np.linspace(0, len(patches.tiles) - 1, min(len(patches.tiles), 30)).astype(int)
    for place in np.unique(pick).tolist():
        tokens = patches.rows(place)[:, : -patches.head.width]
        sums.index_add_(0, torch.from_numpy(patches.part(patches.ids, place)), knn(tokens))
    return sums / sums.sum(dim=1, keepdim=True).clamp(min=torch.finfo(sums.dtype).tiny)


def scored(bench: Bench, method: Callable[[Photo], Tensor]) -> tuple[float, float]:
    """Score a method on the evaluation split: mIoU and accuracy in percent."""
    c = len(bench.classes)
    table = np.zeros((c, c), np.int64)
    for photo in bench.photos:
        maps = method(photo).T.reshape(1, c, *photo.grid)
        size = [POINTS * side for side in photo.grid]
        large = F.interpolate(maps, size, mode="bilinear", align_corners=False)
        table += count(large[0].argmax(0).numpy(), photo.label, c, c)
    values = scores(confusion(table, np.arange(c)))
    return round(values.miou, 2), round(values.accuracy, 2)


def append(path: str, rows: Sequence[Sequence[object]]) -> None:
    """Append rows to a CSV, below its header."""
    new = not Path(path).exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows] if new else rows)


def table(path: str) -> list[tuple]:
    """Read the rows of such a CSV; none where it does not exist."""
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return [(*r[:3], int(r[3]), int(r[4]), float(r[5]), float(r[6])) for r in rows]


def show(rows: Sequence[tuple]) -> None:
    """Print mean mIoU / accuracy over draws and seeds, by method and number of images."""
    numbers = list(dict.fromkeys(row[2] for row in rows))
    click.echo(f"| mIoU / accuracy | {' | '.join(numbers)} |\n|---|{'---|' * len(numbers)}")
    for method in dict.fromkeys(row[1] for row in rows):
        cells = []
        for n in numbers:
            own = np.array([row[5:] for row in rows if row[1] == method and row[2] == n])
            cells.append("{:.1f} / {:.1f}".format(*own.mean(axis=0)))
        click.echo(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
