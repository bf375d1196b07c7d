"""The graph stage: cached features -> nearest neighbours of patches and pixel graphs of tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import click
import faiss
import numpy as np
from scipy.sparse import coo_array, csr_array

from cache.features import Features
from cache.graphs import (
    FORMAT,
    Neighbours,
    read_neighbours,
    write_group,
    write_groups,
    write_neighbours,
    write_pixels,
    write_tiles,
)
from cache.indices import complete_index, index_facts, open_index, write_index
from cache.store import parts
from cache.store.artefact import fingerprint, size, work_folder
from pipeline.features.tiles import sample_plan
from pipeline.features.whitening import unit_rows
from pipeline.graph.kernel import pixel_edges
from pipeline.graph.knn import nearest, neighbour_count
from pipeline.graph.partition import (
    Numbering,
    cut,
    fewest_patches,
    follow,
    group_count,
    round_count,
    share_inside,
    strongest,
)
from pipeline.graph.search import (
    SAMPLE_PER_CELL,
    ExactTop,
    cell_count,
    choose_probes,
    empty_index,
    search,
    to_gpu,
)
from stages import Stage, way_out
from stages.jobs import run_parts
from stages.params import GraphParams, Params, load
from stages.progress import track
from stages.sample import gather

PIXEL_TILES = 64  # tiles whose pixel graphs make one part
BLOCK_PATCHES = 32768  # patches whose neighbours make one part, about
PARTNERS = 64  # of each tile, those that most edges join to it: enough for any batch
QUERIES = 500  # patches whose exact neighbours are searched, to set and to measure the recall
FEWER = "lower `graph.k` or raise `graph.group_patches`"

Groups = dict[tuple[int, int], np.ndarray]  # ids of tiles by round and number in the round


class Job(NamedTuple):
    """All that a worker needs to make any part; small enough to send around."""

    work: str
    features: str
    context: str
    split: str
    level: int | str
    k: int | float
    gpu: bool
    other_images: bool
    block: int  # patches whose neighbours make one part


def make_graph(params: Params, features: str, context: str, out: str) -> None:
    """Find the nearest neighbours of the training patches, and the pixel graphs of their tiles.

    Args:
        features, context: paths of what these stages wrote.
        out: path of the graph file to write. Interrupted, the same call goes on where it was.
    """
    cache = Features.open(features).beside(context)
    tiles = cache.training_tiles(params.train_split)
    check(params, cache, tiles)
    manifest = describe(params, cache)
    with work_folder(out, manifest["fingerprint"]) as work:
        graph, gpu = params.graph, params.compute.device != "cpu"
        job = Job(
            str(work), features, context, params.train_split, graph.level, graph.k, gpu,
            graph.other_images, BLOCK_PATCHES,
        )  # fmt: skip
        names = [] if graph.scope == "batch" else make_pixel_graphs(job, tiles, params)
        if graph.scope == "group":
            names += search_groups(job, random_groups(params, cache), params)
        elif graph.scope == "dataset":
            added, facts = search_dataset(job, cache, params)
            names, manifest = names + added, {**manifest, **facts}
        parts.assemble(work, names, out, manifest)
    if graph.scope == "batch":
        click.echo(f"{out}: no graphs; training makes those of {manifest['groups']} new batches")
        return
    groups = manifest["rounds"] * manifest["groups"]
    click.echo(f"{out}: {groups} groups of {len(tiles)} tiles, {size(out) / 1e9:.2f} GB")


def check(params: Params, cache: Features, tiles: np.ndarray) -> None:
    """Find a k that is too large, or a missing level, before hours are spent."""
    graph = params.graph
    cache.array(graph.level)
    if graph.scope == "dataset":
        fewest = sum(cache.sizes(tiles))
    else:
        count = groups_of_round(params, cache)
        fewest = min(
            fewest_patches(cache.sizes(tiles_of_round(params, cache, number)), count)
            for number in range(len(cache.views))
        )
    with way_out(FEWER):
        neighbour_count(graph.k, fewest)


def tiles_of_round(params: Params, cache: Features, number: int) -> np.ndarray:
    """The tiles of a round of groups, or of an epoch of batches: one view of each image."""
    return cache.tiles_of(params.train_split, [cache.views[number % len(cache.views)]])


def groups_of_round(params: Params, cache: Features) -> int:
    """How many groups, or batches, the tiles of a view are cut into."""
    views = [
        cache.sizes(tiles_of_round(params, cache, number)) for number in range(len(cache.views))
    ]
    return group_count(views, params.graph.group_patches)


def rounds_of(params: Params, cache: Features) -> int:
    """Count the rounds of stored groups, which the epochs of training take in turn."""
    return (
        0 if params.graph.scope == "batch" else round_count(params.train.epochs, len(cache.views))
    )


def random_groups(params: Params, cache: Features) -> Groups:
    """Groups of tiles drawn at random."""
    generator = np.random.default_rng(params.graph.seed)
    count, groups = groups_of_round(params, cache), {}
    for number in range(rounds_of(params, cache)):
        tiles = generator.permutation(tiles_of_round(params, cache, number))
        for group, together in enumerate(cut(tiles, cache.sizes(tiles), count)):
            groups[number, group] = together
    return groups


def describe(params: Params, cache: Features) -> dict:
    """What the graphs are made from."""
    choices = params.graph.model_dump(exclude={"alpha"})
    choices["rounds"] = rounds_of(params, cache)
    split = params.train_split
    return {
        "format": FORMAT,
        **choices,
        "features": cache.fingerprint,
        "split": split,
        "groups": groups_of_round(params, cache),
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


def search_groups(job: Job, groups: Groups, params: Params) -> list[str]:
    """Make the parts that hold groups with the neighbours of their patches; their names."""
    jobs = {f"group-{r:03d}-{g:06d}": ((r, g), t.tolist()) for (r, g), t in groups.items()}
    return run_parts(fill_group, job, jobs, params.compute, "kNN graphs")


def fill_group(job: Job, name: str, at: tuple[int, int], tiles: Sequence[int]) -> None:
    """Search and write the neighbours of the patches of one group of tiles (Eq. 2)."""
    rows = unit_tokens(_opened(job), job.level, tiles)
    with way_out(FEWER):
        indices, cosines = nearest(rows, neighbour_count(job.k, len(rows)), gpu=job.gpu)
    neighbours = Neighbours(indices.astype(np.int64), cosines)
    write_group(Path(job.work), name, at, np.asarray(tiles), neighbours)


def search_dataset(job: Job, cache: Features, params: Params) -> tuple[list[str], dict[str, Any]]:
    """Search the neighbours over the whole split; cut it into groups that follow them.

    Returns the names of the parts, and for the manifest how it was searched and how many of their
    edges the groups see.
    """
    work, numbering, graph = Path(job.work), _numbering(job), params.graph
    facts = index_facts(work)
    if facts is None:
        facts = build_index(job, cache, numbering, graph)
        complete_index(work, facts)
    click.echo(
        f"searching {facts['probes']} of {facts['cells']} cells for each patch: recall "
        f"{facts['recall']:.3f} on a sample"
    )
    blocks = range(len(numbering.block_firsts) - 1)
    jobs = {f"neighbours-{block:06d}": (block, facts["probes"]) for block in blocks}
    names = run_parts(fill_neighbours, job, jobs, params.compute, "kNN search")
    counts, totals = edges_between(work, names, numbering)
    rounds = following_groups(params, cache, numbering, counts)
    seen = share_inside(counts, totals, rounds)
    click.echo(f"a batch sees {seen:.1%} of the edges of its patches")
    groups = {
        (r, g): numbering.tiles[places]
        for r, round_ in enumerate(rounds)
        for g, places in enumerate(round_)
    }
    write_tiles(work, "tiles", numbering.tiles, numbering.sizes.tolist(), numbering.blocks)
    write_groups(work, "groups", groups)
    searched = {"cells": facts["cells"], "probes": facts["probes"], "measured": facts["recall"]}
    return [*names, "tiles", "groups"], {**searched, "edges_seen": seen}


def following_groups(
    params: Params, cache: Features, numbering: Numbering, counts: csr_array
) -> list[list[np.ndarray]]:
    """For each round groups of tiles, given by their positions, that follow the counted edges."""
    generator = np.random.default_rng(params.graph.seed)
    count, rounds = groups_of_round(params, cache), []
    for number in range(rounds_of(params, cache)):
        places = np.flatnonzero(np.isin(numbering.tiles, tiles_of_round(params, cache, number)))
        sizes = numbering.sizes[places].tolist()
        groups = follow(counts[places][:, places], sizes, count, generator)
        rounds.append([places[group] for group in groups])
    return rounds


def build_index(
    job: Job, cache: Features, numbering: Numbering, graph: GraphParams
) -> dict[str, Any]:
    """Write the index of all patches; how many cells a search has to look into for the recall."""
    total = int(numbering.block_firsts[-1])
    generator = np.random.default_rng([graph.seed, 1])
    cells = cell_count(total)
    plan = sample_plan(numbering.sizes.tolist(), cells * SAMPLE_PER_CELL, generator)
    sample = planned_tokens(job, cache, numbering, plan, "sampling for cells")
    queries = np.sort(generator.choice(total, min(QUERIES, total), replace=False))
    plan = numbering.by_tile(queries)
    rows = planned_tokens(job, cache, numbering, plan, "reading queries")
    own = own_ids(job, numbering, queries)
    exact = ExactTop(rows, own, neighbour_count(job.k, total))

    def blocks() -> Iterator[tuple[int, np.ndarray]]:
        firsts = numbering.block_firsts[:-1].tolist()
        for block, first in enumerate(track(firsts, "filling cells", unit="part")):
            tokens = unit_tokens(cache, job.level, numbering.tiles[numbering.blocks == block])
            exact.add(first, tokens)
            yield first, tokens

    write_index(Path(job.work), empty_index(sample, cells, graph.seed), blocks())
    index = open_index(job.work)
    probes, measured = choose_probes(index, rows, own, exact.indices, graph.recall)
    return {"cells": cells, "probes": probes, "recall": measured}


def planned_tokens(
    job: Job, cache: Features, numbering: Numbering, plan: list[np.ndarray], title: str
) -> np.ndarray:
    """Tokens of length 1 of the planned patches of every tile."""
    channels = cache.channels(job.level)
    return gather(
        numbering.tiles, plan, channels, lambda tile: unit_tokens(cache, job.level, [tile]), title
    )


def own_ids(job: Job, numbering: Numbering, patches: np.ndarray) -> np.ndarray:
    """The ids, int64 ``(n, 2)`` from and to, that are no neighbours of patches of these numbers."""
    if not job.other_images:
        return np.stack([patches, patches + 1], axis=1)
    return numbering.image_of(patches)


def fill_neighbours(job: Job, name: str, block: int, probes: int) -> None:
    """Search and write the neighbours of one block of patches."""
    numbering, index = _numbering(job), _index(job)
    first, stop = numbering.block_firsts[block : block + 2].tolist()
    rows = unit_tokens(_opened(job), job.level, numbering.tiles[numbering.blocks == block])
    own = own_ids(job, numbering, np.arange(first, stop))
    k = neighbour_count(job.k, int(numbering.block_firsts[-1]))
    with way_out("lower `graph.k`, or set compute.device to cpu"):
        neighbours = Neighbours(*search(index, rows, own, k, probes))
    write_neighbours(Path(job.work), name, block, neighbours)


def edges_between(
    work: Path, names: Sequence[str], numbering: Numbering
) -> tuple[csr_array, np.ndarray]:
    """Count the edges between the patches of any two tiles; keep the most counted of each.

    Returns counts, symmetric ``(tiles, tiles)``, and all edges of each tile, ``(tiles,)``.
    """
    tiles = len(numbering.tiles)
    directed = csr_array((tiles, tiles), dtype=np.int64)
    for block, name in enumerate(names):
        ids = read_neighbours(work, name, block)
        start = np.repeat(numbering.block_firsts[block] + np.arange(len(ids)), ids.shape[1])
        ends = ids.ravel()
        pairs = np.stack([start[ends >= 0], ends[ends >= 0]])
        row, column = numbering.tile_of(pairs)
        counted = coo_array((np.ones(len(row), np.int64), (row, column)), shape=(tiles, tiles))
        directed = directed + counted.tocsr()
    counts = (directed + directed.T).tocsr()
    return strongest(counts, PARTNERS), counts.sum(axis=1)


def unit_tokens(cache: Features, level: int | str, tiles: Sequence[int]) -> np.ndarray:
    """Tokens of length 1 of some tiles: float32 ``(patches, C)``."""
    return unit_rows(cache.batch([level], tiles).astype(np.float32))


@lru_cache(maxsize=1)
def _opened(job: Job) -> Features:
    """The cache; opened once in each process."""
    return Features.open(job.features).beside(job.context)


@lru_cache(maxsize=1)
def _numbering(job: Job) -> Numbering:
    """How the patches of the split are numbered; made once in each process."""
    cache = _opened(job)
    tiles = cache.training_tiles(job.split)
    return Numbering.of(tiles, cache.sizes(tiles), cache.tiles["image"][tiles], job.block)


@lru_cache(maxsize=1)
def _index(job: Job) -> faiss.Index:
    """The index of all patches; opened once in each process."""
    index = open_index(job.work)
    return to_gpu(index) if job.gpu else index


@click.command(cls=Stage)
@click.option("--params", default="params.yaml", help="Choices.")
@click.option("--features", default="data/features.zarr", help="Feature cache.")
@click.option("--context", default="data/context.zarr", help="Cache of the level `context`.")
@click.option("--out", default="data/graph.h5", help="Graph file to write.")
def main(params: str, features: str, context: str, out: str) -> None:
    """Build the kNN graphs and pixel graphs from the cache.

    Reads data/features.zarr and data/context.zarr, writes data/graph.h5: the k nearest neighbours
    of each training patch (Eq. 2), in its group of images or in the whole split, the groups, and
    the pixel graph of each tile (Eq. 3); or, with scope batch, only how training makes its own.
    Interrupted, it goes on where it was.
    """
    make_graph(load(params), features, context, out)


if __name__ == "__main__":
    main()
