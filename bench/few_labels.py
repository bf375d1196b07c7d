"""A few labelled images: clusters that they name, against classifiers that are fitted to them.

All see the tokens of the level `context`, are fitted to the same images of the training split, and
are scored on the evaluation split, at 2 x 2 points a patch: scores are interpolated there, labels
are read there.
"""

from __future__ import annotations

import json
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
from cache.index import read_index
from cache.labels import IGNORE, read_label, read_labels
from pipeline.evaluation import confusion, count, majority_count, scores
from pipeline.features.whitening import unit_rows
from pipeline.head.head import Head
from pipeline.maps.atlas import shrink
from pipeline.segmenter import Segmenter
from pipeline.selection import most_different, most_typical
from stages.running.progress import track
from stages.settings.params import Params, load

POINTS = 2  # along the side of a patch
NUMBERS = (1, 2, 5, 10)
DRAWS = 5
STEPS = 60  # of the probe's solver, at most
PENALTY = 0.1  # of the probe, for one image; chosen on one draw of the drawn scenes
LENGTH = 20.0  # of the tokens that the probe sees
NEIGHBOURS = 10
MOST_ROWS = 10_000  # that the kNN classifier looks through
LEAST = 0.01  # added to probabilities before their logarithm
LEVEL = "context"
CENTRES = slice(POINTS // 2, None, POINTS)  # the points beside the centres of patches

Patches = Callable[[np.ndarray], Tensor]
"""Tokens float32 ``(n, C)`` to scores of the classes, float32 ``(n, classes)``."""
Table = np.ndarray  # int64 (classes, classes + 1): a confusion matrix


class Image(NamedTuple):
    """A labelled image: float16 tokens ``(h * w, C)``, its grid, uint8 labels at the points."""

    tokens: np.ndarray
    grid: tuple[int, int]
    label: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Tokens as float32."""
        return self.tokens.astype(np.float32)

    @property
    def centres(self) -> np.ndarray:
        """The label of every patch, uint8 ``(h * w,)``: that of a point beside its centre."""
        return self.label[CENTRES, CENTRES].ravel()


class Data(NamedTuple):
    """The labelled images of both splits."""

    train: list[Image]
    evaluated: list[Image]
    classes: int


class Clusters(NamedTuple):
    """The clusters of a head: ids of every point by image, and pixel counts.

    Attributes:
        train, evaluated: ids ``(2 h, 2 w)``, in the order of `Data`.
        areas: int64 ``(images, K)`` of the training split.
        counts: int64 ``(images, K, classes)`` of the training split.
        table: int64 ``(K, classes)`` of the evaluation split.
    """

    train: list[np.ndarray]
    evaluated: list[np.ndarray]
    areas: np.ndarray
    counts: np.ndarray
    table: np.ndarray


@click.command()
@click.option("--head", "folders", multiple=True, default=("data/head",), help="One for each K.")
@click.option("--images", default=60, show_default=True, help="Evaluated, evenly spaced, at most.")
@click.option("--spread", default=30, show_default=True, help="Training images that kNN names by.")
@click.option("--draws", default=DRAWS, show_default=True, help="Of images at random.")
def main(folders: tuple[str, ...], images: int, spread: int, draws: int) -> None:
    """Score clusters named by few images against a linear probe and a kNN classifier.

    Reads data/ and params.yaml of the folder it runs in. The images are chosen by the clusters of
    the last head. Prints a table of mIoU / accuracy, then its values as a line of JSON.
    """
    params = load()
    data = read_data(params, images)
    clusters = {f"K = {c.areas.shape[1]}": c for c in (clusters_of(data, f) for f in folders)}
    chosen = list(clusters.values())[-1]
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, places in choices(chosen.areas, draws, params.seed):
        for method, value in compared(data, clusters, places, spread, params.seed).items():
            rows.setdefault(name, {}).setdefault(method, []).append(value)
    show(rows)


def read_data(params: Params, most: int) -> Data:
    """The labelled images of the project in this folder, at most so many to evaluate."""
    cache = Features.open("data/features.zarr").beside("data/context.zarr")
    rows = read_index("data/index.csv")
    classes, truth = read_labels("data/labels.csv", rows)

    def images(split: str, most: int) -> Iterator[Image]:
        tiles = cache.tiles_of(split)
        places = np.linspace(0, len(tiles) - 1, min(most, len(tiles))).round().astype(int)
        for tile in track(tiles[places].tolist(), f"reading {split}"):
            entry = cache.tiles[tile]
            row = truth.get(rows[entry["image"]].id)
            if row is not None:
                grid = int(entry["grid_h"]), int(entry["grid_w"])
                label = shrink(read_label(*row[1:]), *(POINTS * side for side in grid))
                yield Image(cache.tokens(LEVEL, tile), grid, label)

    dataset, evaluated = params.eval_sets[0]
    train = list(images(params.train_split, len(rows)))
    return Data(train, list(images(evaluated, most)), len(classes.get(dataset, [])))


def at_points(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Scores of patches ``(h * w, n)`` at the points: ``(n, 2 h, 2 w)``."""
    maps = values.T.reshape(1, -1, *grid)
    size = [POINTS * side for side in grid]
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)[0]


def clusters_of(data: Data, folder: str) -> Clusters:
    """Clusters of `ours` at the points of all images, as the stages segment and eval find them."""
    state, fitted, manifest = heads.load_head(Path(folder))
    segmenter = Segmenter(manifest, state, fitted, torch.device("cpu"))
    if segmenter.levels != [LEVEL]:
        raise click.ClickException(f"{folder} must look at {LEVEL} alone, found {segmenter.levels}")
    k = manifest["head"]["clusters"]
    train, evaluated = (
        [ids_of(image, segmenter.head) for image in track(images, f"clusters, K = {k}")]
        for images in (data.train, data.evaluated)
    )
    areas = np.stack([np.bincount(ids.ravel(), minlength=k) for ids in train])
    counted = [
        np.stack([count(i, image.label, k, data.classes) for i, image in zip(*pair, strict=True)])
        for pair in ((train, data.train), (evaluated, data.evaluated))
    ]
    return Clusters(train, evaluated, areas, counted[0], counted[1].sum(0))


@torch.inference_mode()
def ids_of(image: Image, head: Head) -> np.ndarray:
    """Clusters of an image: int64 ``(2 h, 2 w)``."""
    logits = head(torch.from_numpy(image.rows), [len(image.tokens)])[1]
    return at_points(logits, image.grid).argmax(0).numpy()


def choices(areas: np.ndarray, draws: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Choose the images to label, without labels: name and positions in the training split."""
    for n in (n for n in NUMBERS if n < len(areas)):
        yield f"{n}, most typical", most_typical(areas, n)
        yield f"{n}, most different", most_different(areas, n)
        generator = np.random.default_rng(seed)
        for _ in range(draws):
            yield f"{n}, at random", generator.permutation(len(areas))[:n]
    yield f"all {len(areas)}", np.arange(len(areas))


def compared(
    data: Data, clusters: dict[str, Clusters], images: np.ndarray, spread: int, seed: int
) -> dict[str, tuple[float, float]]:
    """mIoU and accuracy of every method with these labelled images.

    Args:
        spread: training images, evenly spaced, whose votes name clusters.
    """
    found = {}
    for name, c in clusters.items():
        mapping = majority_count(c.counts[images].sum(0))
        found[f"clusters, {name}"] = result(confusion(c.table, mapping))
    labelled = training_set([data.train[i] for i in images])
    probe = fit_probe(*labelled, data.classes, PENALTY / len(images))
    found["probe"] = scored(data, [at_points(probe(i.rows), i.grid) for i in data.evaluated])
    knn = neighbours(*labelled, data.classes, seed)
    votes = [at_points(knn(image.rows), image.grid) for image in data.evaluated]
    found["kNN"] = scored(data, votes)
    pick = np.linspace(0, len(data.train) - 1, min(len(data.train), spread)).astype(int)
    spread_to = [(data.train[i], knn(data.train[i].rows).numpy(), i) for i in pick.tolist()]
    for name, c in clusters.items():
        likely = by_cluster(spread_to, c, data.classes)
        found[f"named by kNN, {name}"] = result(confusion(c.table, likely.argmax(1)))
        known = torch.from_numpy(np.log(likely + LEAST))
        both = [
            torch.log(own + LEAST) + known[torch.from_numpy(ids)].permute(2, 0, 1)
            for own, ids in zip(votes, c.evaluated, strict=True)
        ]
        found[f"kNN and clusters, {name}"] = scored(data, both)
    return found


def training_set(images: Sequence[Image]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens float32 ``(n, C)`` and classes int64 ``(n,)`` of the labelled patches."""
    known = [image.centres != IGNORE for image in images]
    pairs = list(zip(images, known, strict=True))
    targets = np.concatenate([image.centres[mask] for image, mask in pairs])
    return np.concatenate([image.rows[mask] for image, mask in pairs]), targets.astype(np.int64)


def fit_probe(points: np.ndarray, targets: np.ndarray, classes: int, penalty: float) -> Patches:
    """A linear classifier on tokens of length 1: cross-entropy and ``penalty / 2 |W|^2``, L-BFGS.

    Args:
        points: float32 ``(n, C)``.
        targets: int64 ``(n,)``.
    """
    x, y = torch.from_numpy(LENGTH * unit_rows(points)), torch.from_numpy(targets)
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)

    def scores_of(rows: np.ndarray) -> Tensor:
        return F.linear(torch.from_numpy(LENGTH * unit_rows(rows)), weight, bias).detach()

    return scores_of


def neighbours(points: np.ndarray, targets: np.ndarray, classes: int, seed: int) -> Patches:
    """A kNN classifier: the cosines of the nearest patches by class, which sum to 1."""
    generator = np.random.default_rng(seed)
    kept = np.sort(generator.permutation(len(points))[:MOST_ROWS])
    rows, known = half(unit_rows(points[kept])), torch.from_numpy(targets[kept])
    k = min(NEIGHBOURS, len(rows))

    def votes(own: np.ndarray) -> Tensor:
        cosines, indices = torch.topk((half(unit_rows(own)) @ rows.T).float(), k, dim=1)
        sums = torch.zeros(len(own), classes)
        sums.scatter_add_(1, known[indices], cosines.clamp(min=LEAST))
        return sums / sums.sum(dim=1, keepdim=True)

    return votes


def half(rows: np.ndarray) -> Tensor:
    """Rows in bfloat16, in which CPUs that have it multiply several times as fast."""
    return torch.from_numpy(rows).to(torch.bfloat16)


def by_cluster(
    votes: Sequence[tuple[Image, np.ndarray, int]], clusters: Clusters, classes: int
) -> np.ndarray:
    """Mean votes in each cluster over training images, labelled or not: ``(K, classes)``."""
    sums = np.zeros((clusters.areas.shape[1], classes), np.float32)
    for _, own, i in votes:
        np.add.at(sums, clusters.train[i][CENTRES, CENTRES].ravel(), own)
    return sums / np.maximum(sums.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)


def scored(data: Data, maps: Sequence[Tensor]) -> tuple[float, float]:
    """mIoU and accuracy of score maps ``(classes, 2 h, 2 w)`` of the evaluation split."""
    table = np.zeros((data.classes, data.classes), np.int64)
    for image, values in zip(data.evaluated, maps, strict=True):
        table += count(values.argmax(0).numpy(), image.label, data.classes, data.classes)
    return result(confusion(table, np.arange(data.classes)))


def result(table: Table) -> tuple[float, float]:
    """mIoU and accuracy in percent."""
    values = scores(table)
    return values.miou, values.accuracy


def show(rows: dict[str, dict[str, list[tuple[float, float]]]]) -> None:
    """Print means, in brackets greatest - least over the draws, and all values as JSON."""
    methods = list(next(iter(rows.values())))
    click.echo(f"| images | {' | '.join(methods)} |\n|---|{'---|' * len(methods)}")
    for name, values in rows.items():
        cells = [
            " / ".join(spread_of(column) for column in zip(*values[method], strict=True))
            for method in methods
        ]
        click.echo(f"| {name} | {' | '.join(cells)} |")
    click.echo("\n" + json.dumps({"bench": "few_labels", "rows": rows}))


def spread_of(values: Sequence[float]) -> str:
    """The mean and, of several values, greatest - least in brackets."""
    mean = f"{np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({max(values) - min(values):.1f})"


if __name__ == "__main__":
    main()
