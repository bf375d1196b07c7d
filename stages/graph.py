"""The graph stage: cached features -> nearest neighbours of patches and pixel graphs of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from cache.features import Features
from cache.graphs import FORMAT, Neighbours, write_group, write_pixels
from cache.store import parts
from cache.store.artefact import fingerprint, size, work_folder
from pipeline.features.whitening import unit_rows
from pipeline.graph.kernel import pixel_edges
from pipeline.graph.knn import nearest, neighbour_count
from pipeline.graph.partition import partition
from stages import Stage, way_out
from stages.jobs import run_parts
from stages.params import GraphParams, Params, load

PIXEL_TILES = 64  # tiles whose pixel graphs make one part
FEWER = "lower `graph.k` or raise `graph.group_images`"

Groups = dict[tuple[int, int], np.ndarray]  # ids of tiles by round and number in the round


class Job(NamedTuple):
    """All that a worker needs to make any part; small enough to send around."""

    work: str
    features: str
    context: str
    level: int | str
    k: int | float
    gpu: bool


def make_graph(params: Params, features: str, context: str, out: str) -> None:
    """Find the nearest neighbours of the training patches, and the pixel graphs of their tiles.

    Args:
        features, context: paths of what these stages wrote.
        out: path of the graph file to write. Interrupted, the same call goes on where it was.
    """
    cache = Features.open(features).beside(context)
    tiles = cache.tiles_of(params.data.train)
    groups = random_groups(cache, tiles, params.graph)
    check(params, cache, tiles, groups)
    manifest = describe(params, cache, len(groups))
    with work_folder(out, manifest["fingerprint"]) as work:
        graph, gpu = params.graph, params.compute.device != "cpu"
        job = Job(str(work), features, context, graph.level, graph.k, gpu)
        names = make_pixel_graphs(job, tiles, params)
        jobs = {f"group-{r:03d}-{g:06d}": ((r, g), t.tolist()) for (r, g), t in groups.items()}
        names += run_parts(fill_group, job, jobs, params.compute, "kNN graphs")
        parts.assemble(work, names, out, manifest)
    click.echo(f"{out}: {len(groups)} groups of {len(tiles)} tiles, {size(out) / 1e9:.2f} GB")


def check(params: Params, cache: Features, tiles: np.ndarray, groups: Groups) -> None:
    """Find a k that is too large, or a missing level, before hours are spent."""
    cache.array(params.graph.level)
    with way_out(FEWER):
        for together in groups.values():
            neighbour_count(params.graph.k, sum(cache.sizes(together)))


def random_groups(cache: Features, tiles: np.ndarray, graph: GraphParams) -> Groups:
    """Groups of images drawn at random; an image's tiles stay together."""
    owner = cache.tiles["image"][tiles]
    images = np.unique(owner).tolist()
    rounds = partition(images, graph.group_images, graph.rounds, np.random.default_rng(graph.seed))
    return groups_of(rounds, owner, tiles)


def groups_of(
    rounds: Sequence[Sequence[np.ndarray]], owner: np.ndarray, tiles: np.ndarray
) -> Groups:
    """The tiles of every group of images.

    Args:
        rounds: images of each group of each round.
        owner: the image of each tile, ``(tiles,)``.
    """
    return {
        (r, g): tiles[np.isin(owner, images)]
        for r, groups in enumerate(rounds)
        for g, images in enumerate(groups)
    }


def describe(params: Params, cache: Features, groups: int) -> dict:
    """What the graphs are made from."""
    choices = params.graph.model_dump(exclude={"alpha"})
    split = params.data.train
    return {
        "format": FORMAT,
        **choices,
        "features": cache.fingerprint,
        "split": split,
        "groups": groups // params.graph.rounds,
        "fingerprint": fingerprint("graph", FORMAT, choices, cache.fingerprint, split),
    }


def make_pixel_graphs(job: Job, tiles: np.ndarray, params: Params) -> list[str]:
    """Make the parts that hold the pixel graphs (Eq. 3); their names."""
    settings = [(pixel.k, pixel.weight) for pixel in params.graph.pixel]
    jobs = {
        f"pixels-{i:06d}": (tiles[i : i + PIXEL_TILES].tolist(), settings)
        for i in range(0, len(tiles), PIXEL_TILES)
    }
    return run_parts(fill_pixels, job, jobs, params.compute, "pixel graphs")


def fill_pixels(
    job: Job, name: str, tiles: Sequence[int], settings: Sequence[tuple[int, float]]
) -> None:
    """Compute and write the pixel graphs of some tiles."""
    cache = _opened(job)
    graphs = []
    for tile in tiles:
        row = cache.tiles[tile]
        height, width = int(row["grid_h"]), int(row["grid_w"])
        graphs.append(pixel_edges(cache.rgb(tile), height, width, settings))
    write_pixels(Path(job.work), name, tiles, graphs)


def fill_group(job: Job, name: str, at: tuple[int, int], tiles: Sequence[int]) -> None:
    """Search and write the neighbours of the patches of one group of tiles (Eq. 2)."""
    rows = unit_tokens(_opened(job), job.level, tiles)
    with way_out(FEWER):
        indices, cosines = nearest(rows, neighbour_count(job.k, len(rows)), gpu=job.gpu)
    neighbours = Neighbours(indices.astype(np.int64), cosines)
    write_group(Path(job.work), name, at, np.asarray(tiles), neighbours)


def unit_tokens(cache: Features, level: int | str, tiles: Sequence[int]) -> np.ndarray:
    """Tokens of length 1 of some tiles: float32 ``(patches, C)``."""
    return unit_rows(cache.batch([level], tiles).astype(np.float32))


@lru_cache(maxsize=1)
def _opened(job: Job) -> Features:
    """The cache; opened once in each process."""
    return Features.open(job.features).beside(job.context)


@click.command(cls=Stage)
@click.option("--params", default="params.yaml", help="Choices.")
@click.option("--features", default="data/features.zarr", help="Feature cache.")
@click.option("--context", default="data/context.zarr", help="Cache of the level `context`.")
@click.option("--out", default="data/graph.h5", help="Graph file to write.")
def main(params: str, features: str, context: str, out: str) -> None:
    """Build the kNN graphs and pixel graphs from the cache.

    Reads data/features.zarr and data/context.zarr, writes data/graph.h5: the k nearest neighbours
    of each training patch (Eq. 2), in its group of images or in the whole split, the groups, and
    the pixel graph of each tile (Eq. 3). Interrupted, it goes on where it was.
    """
    make_graph(load(params), features, context, out)


if __name__ == "__main__":
    main()
