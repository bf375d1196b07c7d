"""The contest: trained heads against K-means, spectral methods, other objectives, a linear probe.

All see the same cache and are scored on the evaluation split by one of its protocols, with an
oracle mapping from clusters to classes. MaskCLIP and ReCo know the classes by their names:
they see the images through CLIP, and there is nothing to map.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch

from bench.opponents import (
    Scorer,
    fit_embedded,
    fit_kmeans,
    fit_probe,
    import_ncut,
    ncut,
    spectral,
)
from bench.rivals import dsm, functions, maskclip, reco
from bench.rivals.dsm import Picture
from bench.rivals.functions import Group, Objective, group_of
from bench.rivals.objectives import NeuralEF, Spin
from bench.seen import Seen, count_pixels, labelled, patch_labels, tile_pixels
from cache import heads
from cache.features import Features
from cache.index import read_index
from cache.labels import IGNORE, read_labels
from cache.segments import PREDICTORS
from pipeline.evaluation import MATCHINGS, confusion, scores
from pipeline.features.tiles import sample_plan
from pipeline.segmenter import Segmenter
from stages.running.progress import track
from stages.running.sample import gather
from stages.segment import score_cached
from stages.settings.params import Params, load
from stages.train import sample_size

MATCHED = ("majority_iou", "hungarian")
PROBE = "probe"
WHITENED = ("kmeans", "spectral", "ncut")
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "neuralef": NeuralEF,
    "spin": partial(Spin, decay=0.9),
}
MASKCLIP = "maskclip"
BY_NAME = (MASKCLIP, "reco")  # of classes, whose seeds change nothing
RIVALS = ("dsm", *OBJECTIVES, "reco")
GROUP_IMAGES = 8  # whose patches are one batch of neuralef and spin

Table = dict[str, tuple[float, float]]  # mIoU and accuracy in percent, by matching


class Contest(NamedTuple):
    """Settings and sizes that all opponents share."""

    params: Params
    cache: Features
    classes: int
    protocol: str
    clusters: int
    patches: int  # that spectral clustering and the cut are fitted to
    k: int  # neighbours in the graph of spectral clustering
    degree: float | None  # of the cut
    epochs: int  # of the probe, neuralef and spin
    functions: int  # of neuralef and spin
    merge_to: int | None  # segments that clusters of trained heads are merged to
    archive: int  # images of a class that reco co-segments
    clip: maskclip.Clip | None  # of maskclip and reco


class Opponent(NamedTuple):
    """A method, the level that it looks at, and to how many dimensions it whitens first."""

    method: str
    level: str  # "" for maskclip, which has its own ViT
    whiten: int | None

    @classmethod
    def of(cls, text: str) -> Opponent:
        """``method:level`` or ``method:level:dimensions``, such as kmeans:late:64; or maskclip."""
        if text == MASKCLIP:
            maskclip.import_open_clip()
            return cls(MASKCLIP, "", None)
        others = "|".join((PROBE, *RIVALS))  # they take the tokens as they are
        matched = re.fullmatch(rf"({'|'.join(WHITENED)}|{others}):(\w+)(?::(\d+))?", text)
        if not matched or (matched[3] and matched[1] not in WHITENED):
            raise click.BadParameter(
                f"an opponent is {MASKCLIP}, or one of "
                f"{', '.join((*WHITENED, PROBE, *RIVALS))}, a level, and for "
                f"{', '.join(WHITENED)} perhaps to how many dimensions to whiten, such as "
                f"kmeans:late:64; found {text!r}"
            )
        method, level, whiten = matched.groups()
        if method == "ncut":
            import_ncut()
        if method in BY_NAME:
            maskclip.import_open_clip()
        return cls(method, level, int(whiten) if whiten else None)


@click.command()
@click.argument("opponents", nargs=-1)
@click.option("--head", "folders", multiple=True, help="Folder of a trained head; one for a seed.")
@click.option("--clusters", default=256, show_default=True, help="K of the opponents.")
@click.option("--seeds", default=3, show_default=True, help="Seeds 0, 1, ... of the opponents.")
@click.option(
    "--patches", default=12_000, show_default=True, help="In the sample of spectral, ncut."
)
@click.option("--k", default=50, show_default=True, help="Neighbours in the graph of spectral.")
@click.option("--degree", type=float, help="Mean affinity of ncut; the package's without it.")
@click.option("--epochs", default=20, show_default=True, help="Passes of probe, neuralef, spin.")
@click.option("--functions", default=32, show_default=True, help="Eigenfunctions of these two.")
@click.option("--protocol", help="One of `protocols` that the cache holds; the first without it.")
@click.option("--merge-to", type=int, help="Segments that clusters of the heads are merged to.")
@click.option(
    "--archive",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Images of a class that reco looks at.",
)
@click.option(
    "--clip-model",
    default="ViT-B-16-quickgelu",
    show_default=True,
    help="Of maskclip and reco: a model of open_clip, or local-dir:<folder>.",
)
@click.option(
    "--clip-pretrained", default="openai", show_default=True, help="Its weights: a tag or a file."
)
def main(
    opponents: tuple[str, ...], folders: tuple[str, ...], clusters: int, seeds: int, patches: int,
    k: int, degree: float | None, epochs: int, functions: int, protocol: str | None,
    merge_to: int | None, archive: int, clip_model: str, clip_pretrained: str,
) -> None:  # fmt: skip
    """Score OPPONENTS (kmeans:last, kmeans:late:64, spectral:late:64, ncut:last, dsm:last,
    neuralef:last, spin:last, probe:late, maskclip, reco:last).

    Reads data/ and params.yaml of the folder it runs in; the CRF is that of params.yaml. The probe
    is supervised, an upper reference. Prints one table, then its values as a line of JSON.
    """
    named = {text: Opponent.of(text) for text in opponents}  # all, before any takes its time
    params = load()
    cache = Features.open("data/features.zarr").beside("data/context.zarr")
    protocol = protocol or next(iter(cache.manifest["protocols"]))
    if protocol not in cache.manifest["protocols"]:
        held = ", ".join(cache.manifest["protocols"])
        raise click.BadParameter(f"the cache holds the protocols {held}, found {protocol!r}")
    by_set, _ = read_labels("data/labels.csv", read_index("data/index.csv"))
    classes = by_set.get(params.eval_sets[0][0], [])
    by_name = any(opponent.method in BY_NAME for opponent in named.values())
    clip = maskclip.load(clip_model, clip_pretrained, classes) if by_name else None
    contest = Contest(
        params, cache, len(classes), protocol, clusters, patches, k, degree, epochs, functions,
        merge_to, archive, clip,
    )  # fmt: skip
    rows: dict[str, list[Table]] = {}
    for folder in folders:
        for name, table in trained(contest, folder).items():
            rows.setdefault(name, []).append(table)
    for text, opponent in named.items():
        runs = 1 if opponent.method in BY_NAME else seeds
        rows[text] = [score(contest, opponent, seed) for seed in range(runs)]
    show(rows)


def show(rows: dict[str, list[Table]]) -> None:
    """Print mean and, in brackets, greatest - least over the seeds, and all values as JSON."""
    click.echo(f"| | {' | '.join(MATCHED)} | seeds |\n|---|{'---|' * len(MATCHED)}---|")
    for name, seeds in rows.items():
        columns = [
            " / ".join(spread(column) for column in zip(*(t[m] for t in seeds), strict=True))
            for m in MATCHED
        ]
        click.echo(f"| {name} | {' | '.join(columns)} | {len(seeds)} |")
    click.echo("\n" + json.dumps({"bench": "contest", "rows": rows}))


def spread(values: Sequence[float]) -> str:
    """The mean, and greatest - least in brackets."""
    return f"{statistics.fmean(values):.1f} ({max(values) - min(values):.1f})"


def tokens(contest: Contest, level: str, tile: int) -> np.ndarray:
    """Tokens of a tile: float32 ``(patches, C)``."""
    return contest.cache.tokens(level, tile).astype(np.float32)


def sample(contest: Contest, level: str, wanted: int, seed: int) -> np.ndarray:
    """Tokens of so many training patches, drawn as training draws them: float32 ``(n, C)``."""
    cache = contest.cache
    tiles = cache.training_tiles(contest.params.train_split)
    plan = sample_plan(cache.sizes(tiles), wanted, np.random.default_rng([seed, 1]))
    return gather(tiles, plan, cache.channels(level), partial(cache.tokens, level), "sampling")


def score(contest: Contest, opponent: Opponent, seed: int) -> Table:
    """Fit an opponent to the training split and score it on the evaluation split."""
    if contest.clip and opponent.method in BY_NAME:
        found = fit_by_name(contest, contest.clip, opponent)
        return matched(pixels(contest, found, contest.classes, logits=False), named=True)
    scorer = fit(contest, opponent, seed)

    def maps(item: Seen) -> list[torch.Tensor]:
        pictures = [picture(contest, opponent.level, tile) for tile in item.tiles]
        return [torch.from_numpy(scorer(p)).T.reshape(-1, *p.grid) for p in pictures]

    supervised = opponent.method == PROBE
    k = contest.classes if supervised else contest.clusters
    return matched(pixels(contest, maps, k, logits=supervised), supervised)


def fit_by_name(
    contest: Contest, clip: maskclip.Clip, opponent: Opponent
) -> Callable[[Seen], list[torch.Tensor]]:
    """MaskCLIP or ReCo: an image to scores of the classes ``(classes, h, w)``, of each tile."""
    if opponent.method == MASKCLIP:
        return lambda item: [maskclip.cosines(clip, pixels) for pixels in item.windows()]
    rows = read_index("data/index.csv")
    tiles = contest.cache.training_tiles(contest.params.train_split)
    see = partial(picture, contest, opponent.level)
    references = reco.fit(
        clip,
        len(tiles),
        lambda i: tile_pixels(contest.cache, rows, tiles[i]),
        lambda i: see(int(tiles[i])),
        contest.archive,
    )
    return lambda item: [
        reco.scores(clip, references, see(tile), pixels)
        for tile, pixels in zip(item.tiles, item.windows(), strict=True)
    ]


def fit(contest: Contest, opponent: Opponent, seed: int) -> Callable[[Picture], np.ndarray]:
    """The fitted opponent: the patches of an image to scores ``(n, K)``."""
    if opponent.method == "dsm":
        tiles = contest.cache.training_tiles(contest.params.train_split).tolist()
        pictures = (picture(contest, opponent.level, t) for t in track(tiles, "segments"))
        return dsm.fit(pictures, pixel_settings(contest), contest.clusters, seed).scores
    scorer = fit_rows(contest, opponent, seed)
    return lambda image: scorer(image.tokens)


def picture(contest: Contest, level: str, tile: int) -> Picture:
    """The patches of a tile."""
    entry, cache = contest.cache.tiles[tile], contest.cache
    grid = int(entry["grid_h"]), int(entry["grid_w"])
    return Picture(tokens(contest, level, tile), cache.rgb(tile), grid)


def pixel_settings(contest: Contest) -> list[tuple[int, float]]:
    """Neighbours and distance weight of each pixel graph in the union."""
    return [(graph.k, graph.weight) for graph in contest.params.graph.pixel]


def groups(contest: Contest, level: str, seed: int) -> list[Group]:
    """The training split in random groups of images: tokens of a level and their kernel (Eq. 4)."""
    tiles = contest.cache.training_tiles(contest.params.train_split)
    order = np.random.default_rng([seed, 2]).permutation(tiles)
    return [
        group_of([picture(contest, level, int(tile)) for tile in part], contest.params.graph.k,
                 pixel_settings(contest), contest.params.graph.alpha)
        for part in np.array_split(order, -(-len(tiles) // GROUP_IMAGES))
    ]  # fmt: skip


def fit_rows(contest: Contest, opponent: Opponent, seed: int) -> Scorer:
    """An opponent that sees patches one by one: rows ``(n, C)`` of its level to ``(n, K)``."""
    method, level, whiten = opponent
    if method in OBJECTIVES:
        sizes = contest.clusters, contest.functions
        objective = OBJECTIVES[method]()
        return functions.fit(groups(contest, level, seed), *sizes, objective, contest.epochs, seed)
    if method == PROBE:
        return fit_probe(*training_set(contest, level), contest.classes, contest.epochs, seed)
    if method == "kmeans":
        points = sample(contest, level, sample_size(contest.clusters), seed)
        return fit_kmeans(points, contest.clusters, whiten, seed)
    embed = {
        "spectral": partial(spectral, k=contest.k),
        "ncut": partial(ncut, degree=contest.degree),
    }[method]
    points = sample(contest, level, contest.patches, seed)
    return fit_embedded(points, contest.clusters, whiten, seed, embed)


def training_set(contest: Contest, level: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens float32 ``(n, C)`` and classes int64 ``(n,)`` of the labelled training patches.

    The class of a patch is that of the pixel at its centre.
    """
    rows, targets = [], []
    for tile, classes in patch_labels(contest.cache, contest.params.train_split):
        rows.append(tokens(contest, level, tile)[classes != IGNORE])
        targets.append(classes[classes != IGNORE])
    return np.concatenate(rows), np.concatenate(targets).astype(np.int64)


def trained(contest: Contest, folder: str) -> dict[str, Table]:
    """Score the predictors of a trained head, as segment and eval do."""
    state, fitted, manifest = heads.load_head(Path(folder))
    cpu, params = torch.device("cpu"), contest.params
    segmenter = Segmenter(
        manifest, state, fitted, cpu, temperature=params.segment.temperature,
        merge_to=contest.merge_to,
    )  # fmt: skip
    shape = contest.merge_to or manifest["head"]["clusters"], contest.classes
    tables = {name: np.zeros(shape, np.int64) for name in PREDICTORS}
    for item in labelled(contest.cache, params.eval_sets[0][1], contest.protocol):
        _, found = score_cached(contest.cache, segmenter, item.row, contest.protocol)
        for name, table in tables.items():
            logits = name == "ours"
            table += count_pixels(item, found[name], shape, params.segment.crf, logits)
    return {name: matched(table, named=False) for name, table in tables.items()}


def pixels(
    contest: Contest, maps: Callable[[Seen], list[torch.Tensor]], k: int, logits: bool
) -> np.ndarray:
    """Pixels of every (cluster, class) of the evaluation split, int64 ``(k, classes)``.

    Args:
        maps: score maps ``(k, grid_h, grid_w)`` of every tile of an image.
        logits: what they hold, for a CRF.
    """
    shape, crf = (k, contest.classes), contest.params.segment.crf
    table = np.zeros(shape, np.int64)
    for item in labelled(contest.cache, contest.params.eval_sets[0][1], contest.protocol):
        table += count_pixels(item, maps(item), shape, crf, logits)
    return table


def matched(table: np.ndarray, named: bool) -> Table:
    """Scores of a table of pixels: with each of `MATCHED`, fitted on it; named, as it is."""
    found = {}
    for name in MATCHED:
        mapping = np.arange(len(table)) if named else MATCHINGS[name](table)
        values = scores(confusion(table, mapping))
        found[name] = (values.miou, values.accuracy)
    return found


if __name__ == "__main__":
    main()
