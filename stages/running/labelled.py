"""What training learns from labels: of some images of the training split, or a person's names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cache.features import Features
from cache.graphs import Graphs
from cache.index import ImageRow, read_index
from cache.labels import IGNORE, LabelRow, read_label, read_labels
from cache.names import Names, read_names
from cache.store.errors import InputError
from pipeline.graph.kernel import block_diagonal, feature_graph, kernel, to_torch
from pipeline.head import semi_supervised
from pipeline.head.head import Head
from pipeline.head.semi_supervised import Classifier, Rows
from pipeline.maps.named import named
from pipeline.maps.patches import patch_labels
from pipeline.selection import most_different, most_typical
from stages.running.progress import alive, track
from stages.settings.sections import TrainParams

NEIGHBOURS = 16  # of each patch, along which labels spread
LABELLED = 20_000  # labelled patches that the linear head is fitted to, at most
OTHERS = 40_000  # and other ones
HALF = 0.5  # least share of labelled patches in all weights: as much as all others together
CORRECTED = 0.1  # share of corrected ones: they are where names fail, so no fair sample


class Knowledge(NamedTuple):
    """What is known of the patches of the training split, tile after tile.

    Attributes:
        classes: names by index.
        colours: uint8 ``(classes, 3)``; None where nobody chose any.
        labels: uint8 ``(patches,)``, 255 = not labelled.
        names: uint8 ``(patches,)``, the name of a patch's cluster, 255 = none.
        images: number of images with labels.
        share: of the labelled patches in what the classifier is fitted to.
        said: where the labels come from.
    """

    classes: list[str]
    colours: np.ndarray | None
    labels: np.ndarray
    names: np.ndarray
    images: int
    share: float
    said: str


class Patches:
    """The training patches, tile after tile, as a trained head sees them.

    Attributes:
        tiles: ids of the tiles of the training split.
        firsts: number of the first patch of each tile, and of all patches.
    """

    def __init__(
        self, cache: Features, split: str, head: Head, levels: Sequence[int | str]
    ) -> None:
        self.cache, self.head, self.levels, self.split = cache, head, levels, split
        self.tiles = cache.training_tiles(split)
        self.firsts = np.cumsum([0, *cache.sizes(self.tiles)])
        self.device = next(head.parameters()).device

    def part(self, values: Any, place: int) -> Any:
        """Return the values of the patches of the tile at this place in `tiles`."""
        return values[self.firsts[place] : self.firsts[place + 1]]

    @torch.inference_mode()
    def read(self, place: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, features and logits of a tile: float32 ``(patches, ...)``."""
        tokens = torch.from_numpy(self.cache.batch(self.levels, [self.tiles[place]]))
        tokens = tokens.to(self.device).float()
        return tokens, *self.head(tokens, [len(tokens)])

    def rows(self, place: int) -> Tensor:
        """Return what the classifier looks at, of a tile."""
        return semi_supervised.joined(*self.read(place)[:2])

    def clusters(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best and the second cluster of every patch, each ``(rows, columns)``."""
        entry = self.cache.tiles[self.tiles[place]]
        best = self.read(place)[2].topk(2, dim=1).indices.cpu().numpy()
        grid = int(entry["grid_h"]), int(entry["grid_w"])
        return best[:, 0].reshape(grid), best[:, 1].reshape(grid)


def read_knowledge(
    patches: Patches,
    choices: TrainParams,
    dataset: str,
    index: str,
    labels: str,
    head: str,
    seed: int,
) -> Knowledge:
    """Read the labels that `train.labelled` asks for.

    Args:
        dataset: name of the data set that is trained on.
        index, labels: paths of what `prepare` wrote.
        head: fingerprint of the trained head, whose clusters a file of names must name.
        seed: of a choice of images at random.

    Raises:
        InputError: there are no such labels, or fewer than two classes in them.
    """
    rows = read_index(index)
    patches.cache.check_images(rows, index)
    if choices.names:
        names = read_names(choices.names, head, patches.head.clusters)
        found = named_patches(patches, names, rows, choices.names)
    else:
        classes, truth = read_labels(labels, rows)
        given = classes.get(dataset, [])
        found = labelled_patches(patches, choices, given, truth, rows, seed)
    present = np.setdiff1d(np.union1d(found.labels, found.names), [IGNORE])
    if len(present) < 2:
        raise InputError(
            f"{found.said} must show two classes at least, found "
            f"{', '.join(found.classes[i] for i in present) or 'none'}: label more, or other "
            "images (train.labelled, train.choose)"
        )
    return found


def labelled_patches(
    patches: Patches,
    choices: TrainParams,
    classes: list[str],
    truth: dict[int, LabelRow],
    rows: Sequence[ImageRow],
    seed: int,
) -> Knowledge:
    """Label the patches of the chosen images by their most frequent value."""
    split = patches.split
    ids = [row.id for row in rows if row.split == split and row.id in truth]
    if not ids:
        raise InputError(
            f"train.labelled ({choices.labelled}) needs labels of split {split}, found none: add "
            "labels/<split>/<stem>.png for some of its images, or set train.labelled to null"
        )
    chosen, how = set(ids), ""
    if isinstance(choices.labelled, int) and choices.labelled < len(ids):
        chosen = choose_images(patches, ids, choices.labelled, choices.choose, seed)
        how = f", {choices.choose}"
    found = np.full(patches.firsts[-1], IGNORE, np.uint8)
    for place, tile in enumerate(patches.tiles.tolist()):
        entry = patches.cache.tiles[tile]
        if int(entry["image"]) in chosen:
            row = truth[int(entry["image"])]
            label = read_label(row.path, row.sha256, row.table)
            patches.part(found, place)[:] = patch_labels(label, entry)
    said = f"the labels of {len(chosen)} of {len(ids)} images of {split}{how}"
    unnamed = np.full_like(found, IGNORE)
    return Knowledge(classes, None, found, unnamed, len(chosen), HALF, said)


def choose_images(patches: Patches, ids: Sequence[int], n: int, how: str, seed: int) -> set[int]:
    """Choose n images to label by the clusters in them, without a label, or at random."""
    if how == "random":
        return set(np.random.default_rng([seed, 4]).permutation(ids)[:n].tolist())
    areas = np.zeros((len(ids), patches.head.clusters))
    place_of = {image: place for place, image in enumerate(ids)}
    images = patches.cache.tiles["image"][patches.tiles].tolist()
    for place, image in enumerate(track(images, "choosing images to label")):
        if image in place_of:
            clusters = patches.clusters(place)[0].ravel()
            areas[place_of[image]] += np.bincount(clusters, minlength=areas.shape[1])
    choose = {"different": most_different, "typical": most_typical}[how]
    return {ids[place] for place in choose(areas, n).tolist()}


def named_patches(patches: Patches, names: Names, rows: Sequence[ImageRow], path: str) -> Knowledge:
    """Name patches by their clusters, and label those of corrected regions."""
    values, classes, colours, splits, corrections = names.naming
    sha256 = {row.id: row.sha256 for row in rows}
    found = np.full(patches.firsts[-1], IGNORE, np.uint8)
    labels, images = np.full_like(found, IGNORE), set()
    for place, tile in enumerate(track(patches.tiles.tolist(), "naming patches")):
        ids, seconds = patches.clusters(place)
        patches.part(found, place)[:] = named(ids, seconds, values, splits).ravel()
        entry = patches.cache.tiles[tile]
        for one in corrections:
            if one.sha256 == sha256[int(entry["image"])]:
                region = np.where(one.cells, np.uint8(one.value), np.uint8(IGNORE))
                corrected = patch_labels(region, entry)
                if one.cluster is not None:
                    corrected[ids.ravel() != one.cluster] = IGNORE
                own = patches.part(labels, place)
                own[:] = np.where(corrected == IGNORE, own, corrected)
                images.add(one.sha256)
    said = f"{path}: {np.count_nonzero(names.codes >= 0)} named clusters, "
    said += f"{len(corrections)} corrected regions"
    return Knowledge(classes, colours, labels, found, len(images), CORRECTED, said)


def learn_labels(
    patches: Patches,
    knowledge: Knowledge,
    graphs: Iterable[tuple[np.ndarray, Tensor]],
    seed: int,
) -> Classifier:
    """Spread labels and prior over all training patches and fit the classifier to them.

    Args:
        graphs: `split_graphs`; what none of them has keeps its prior.
    """
    generator, labels = np.random.default_rng([seed, 2]), torch.from_numpy(knowledge.labels).long()
    known, classes = knowledge.labels != IGNORE, len(knowledge.classes)
    labelled = _draw(np.flatnonzero(known), LABELLED, generator)
    others = _draw(np.flatnonzero(~known), OTHERS, generator)
    device = patches.device
    near = gather_rows(patches, labelled, "reading labelled patches")
    one_hot = torch.eye(classes, device=device)
    voters = Rows(near, one_hot[labels[labelled]]).thinned(semi_supervised.VOTERS)
    seeds = torch.zeros(len(known), classes, device=device)
    far = near.new_empty(len(others), near.shape[1])
    for place in track(range(len(patches.tiles)), "prior of training patches"):
        if patches.part(known, place).all():
            continue
        rows, (a, b) = patches.rows(place), patches.firsts[place : place + 2]
        seeds[a:b] = prior_of(patches.part(knowledge.names, place), rows, voters, one_hot)
        own = slice(*np.searchsorted(others, (a, b)))
        far[own] = rows[others[own] - a]
    seeds[torch.from_numpy(known)] = one_hot[labels[known]]
    with alive("spreading labels, fitting the classifier"):
        for numbers, graph in graphs:
            members = torch.from_numpy(numbers)
            seeds[members] = semi_supervised.spread(graph, seeds[members])
        return semi_supervised.fit(
            Rows(near, one_hot[labels[labelled]]),
            Rows(far, semi_supervised.spread(None, seeds[torch.from_numpy(others)])),
            patches.head.width,
            knowledge.images,
            max(knowledge.share, float(known.mean())),
        )


def prior_of(names: np.ndarray, rows: Tensor, voters: Rows, one_hot: Tensor) -> Tensor:
    """Give the prior of a tile's patches: the names of their clusters, or votes where none."""
    found = rows.new_zeros(len(rows), len(one_hot))
    if len(voters.rows):
        found = semi_supervised.prior(semi_supervised.votes(rows, voters))
    if (given := names != IGNORE).any():
        values = one_hot[torch.from_numpy(names[given]).long()]
        found[torch.from_numpy(given)] = semi_supervised.prior(values)
    return found


def gather_rows(patches: Patches, wanted: np.ndarray, title: str) -> Tensor:
    """Gather rows of the wanted patches, given by rising numbers: float32 ``(n, c + d)``."""
    width = sum(patches.head.channels) + patches.head.width
    found = torch.empty(len(wanted), width, device=patches.device)
    ends = np.searchsorted(wanted, patches.firsts)
    places = np.flatnonzero(np.diff(ends))
    for place in track(places.tolist(), title):
        own = slice(*ends[place : place + 2])
        found[own] = patches.rows(place)[wanted[own] - patches.firsts[place]]
    return found


def _draw(numbers: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    return np.sort(generator.permutation(numbers)[:most])


def split_graphs(
    graphs: Graphs, patches: Patches, alpha: float
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Join neighbours and pixel graphs of the training split to graphs that no edge leaves.

    They are the groups of images in which neighbours were searched, so that memory holds one at a
    time. Scope dataset has one graph of the whole split, scope batch has none.

    Yields:
        Numbers of the patches, and their sparse ``(n, n)`` of a spectral radius of at most 1.
    """
    groups: Iterable[_Group] = _groups(graphs, patches)
    if graphs.manifest["scope"] == "dataset":
        groups = [_joined(groups, patches)]
    for tiles, numbers, indices, cosines in groups:
        pixels = block_diagonal([graphs.pixel_graph(int(tile)) for tile in tiles])
        kappa = kernel(feature_graph(indices, cosines), pixels, alpha) * np.float32(1 / (1 + alpha))
        yield numbers, to_torch(kappa, patches.device)


_Group = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Tiles, numbers of their patches, and neighbours and cosines of these, ``(n, k)`` each."""


def _groups(graphs: Graphs, patches: Patches) -> Iterator[_Group]:
    first_of = dict(zip(patches.tiles.tolist(), patches.firsts[:-1].tolist(), strict=True))
    for round_ in range(min(graphs.manifest["rounds"], len(patches.cache.views))):
        for number in range(graphs.manifest["groups"]):
            tiles, near, _ = graphs.group(round_, number)
            sizes = zip(tiles.tolist(), patches.cache.sizes(tiles), strict=True)
            numbers = np.concatenate([first_of[tile] + np.arange(n) for tile, n in sizes])
            yield tiles, numbers, near.indices[:, :NEIGHBOURS], near.cosines[:, :NEIGHBOURS]


def _joined(groups: Iterable[_Group], patches: Patches) -> _Group:
    count = int(patches.firsts[-1])
    indices = np.full((count, NEIGHBOURS), -1, np.int64)
    cosines = np.zeros((count, NEIGHBOURS), np.float32)
    for _, numbers, near, weights in groups:
        indices[numbers, : near.shape[1]] = near
        cosines[numbers, : near.shape[1]] = weights
    return patches.tiles, np.arange(count), indices, cosines
