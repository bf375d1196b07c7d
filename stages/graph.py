"""The graph stage: cached features -> nearest neighbours of patches and pixel graphs of tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    write_groups,
    write_neighbours,
    write_pixels,
    write_tiles,
)
from cache.search_index import complete_index, index_facts, open_index, write_index
from cache.store import parts
from cache.store.artefact import fingerprint, size, work_folder
from pipeline.features.tiles import sample_plan
from pipeline.features.whitening import unit_rows
from pipeline.graph.kernel import pixel_edges
from pipeline.graph.knn import nearest, neighbour_count
from pipeline.graph.partition import (
    GroupPlan,
    Numbering,
    following_groups,
    group_count,
    random_groups,
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
from stages import program, way_out
from stages.running.hardware import chosen_device
from stages.running.jobs import run_parts
from stages.running.progress import track
from stages.running.sample import gather
from stages.settings.params import Params, load
from stages.settings.sections import ComputeParams, GraphParams, PixelGraphParams

PIXEL_TILES = 64  # tiles whose pixel graphs make one part
BLOCK_PATCHES = 32768  # patches whose neighbours make one part, about
PARTNERS = 64  # of each tile, those that most edges join to it: enough for any batch
QUERIES = 500  # patches whose exact neighbours are searched, to set and to measure the recall
FEWER = "lower `graph.k` or raise `graph.group_patches`"


class Job(NamedTuple):
    """Everything that a worker needs to make any part, small enough to send."""

    work: str
    features: str
    context: str
    split: str
    level: int | str
    k: int | float
    gpu: bool
    other_images: bool
    block: int  # patches whose neighbours make one part


class Scope(NamedTuple):
    """A way to search neighbours: in groups, in the data set, or in training's batches.

    Attributes:
        fewest: counts the patches of the smallest search of a plan.
        rounds: counts the rounds of groups to store, from epochs and views.
        make: writes the parts; gives their names, and facts for the manifest.
        told: the message to the user.
    """

    fewest: Callable[[GroupPlan], int]
    rounds: Callable[[int, int], int]
    make: Callable[[Job, GroupPlan, GraphParams, ComputeParams], tuple[list[str], dict[str, Any]]]
    told: str


def make_graph(params: Params, features: str, context: str, out: str) -> None:
    """Find the nearest neighbours of the training patches, and the pixel graphs of their tiles.

    Args:
        features, context: paths of what these stages wrote.
        out: path of the graph file to write. Interrupted, the same call goes on where it was.
    """
    chosen_device(params.compute.device)
    cache = Features.open(features).beside(context)
    graph, gpu, split = params.graph, params.compute.gpu, params.train_split
    scope = SCOPES[graph.scope]
    views = [cache.tiles_of(split, [view]) for view in cache.views]
    sizes = [cache.sizes(tiles) for tiles in views]
    rounds = scope.rounds(params.train.epochs, len(views))
    plan = GroupPlan(views, sizes, group_count(sizes, graph.group_patches), rounds)
    cache.array(graph.level)
    with way_out(FEWER):
        neighbour_count(graph.k, scope.fewest(plan))
    manifest = describe(graph, split, cache.fingerprint, plan)
    with work_folder(out, manifest["fingerprint"]) as work:
        job = Job(
            str(work), features, context, split, graph.level, graph.k, gpu,
            graph.other_images, BLOCK_PATCHES,
        )  # fmt: skip
        names, facts = scope.make(job, plan, graph, params.compute)
        parts.assemble(work, names, out, {**manifest, **facts})
    numbers = {"groups": plan.groups, "stored": plan.rounds * plan.groups, "gb": size(out) / 1e9}
    click.echo(f"{out}: {scope.told.format(**numbers)}")


def describe(graph: GraphParams, split: str, features: str, plan: GroupPlan) -> dict[str, Any]:
    """Describe what the graphs are made from; ``features`` is the fingerprint of the cache."""
    choices = {**graph.model_dump(exclude={"alpha"}), "rounds": plan.rounds}
    return {
        "format": FORMAT,
        **choices,
        "features": features,
        "split": split,
        "groups": plan.groups,
        "fingerprint": fingerprint("graph", FORMAT, choices, features, split),
    }


def make_no_graphs(
    job: Job, plan: GroupPlan, graph: GraphParams, compute: ComputeParams
) -> tuple[list[str], dict[str, Any]]:
    """Leave the graphs to training, which finds in the manifest how to make them."""
    return [], {}


def make_pixel_graphs(
    job: Job, plan: GroupPlan, settings: Sequence[PixelGraphParams], compute: ComputeParams
) -> list[str]:
    """Make the parts that hold the pixel graphs (Eq. 3); give their names."""
    tiles = np.sort(np.concatenate(plan.views))
    pairs = [(pixel.k, pixel.weight) for pixel in settings]
    jobs = {
        f"pixels-{i:06d}": (tiles[i : i + PIXEL_TILES].tolist(), pairs)
        for i in range(0, len(tiles), PIXEL_TILES)
    }
    return run_parts(fill_pixels, job, jobs, compute, "pixel graphs")


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


def search_groups(
    job: Job, plan: GroupPlan, graph: GraphParams, compute: ComputeParams
) -> tuple[list[str], dict[str, Any]]:
    """Make pixel graphs, and groups of random tiles with the neighbours of their patches."""
    names = make_pixel_graphs(job, plan, graph.pixel, compute)
    jobs = {
        f"group-{r:03d}-{g:06d}": ((r, g), tiles.tolist())
        for r, groups in enumerate(random_groups(plan, graph.seed))
        for g, tiles in enumerate(groups)
    }
    return names + run_parts(fill_group, job, jobs, compute, "kNN graphs"), {}


def fill_group(job: Job, name: str, at: tuple[int, int], tiles: Sequence[int]) -> None:
    """Search and write the neighbours of the patches of one group of tiles (Eq. 2)."""
    rows = unit_tokens(_opened(job), job.level, tiles)
    with way_out(FEWER):
        indices, cosines = nearest(rows, neighbour_count(job.k, len(rows)), gpu=job.gpu)
    neighbours = Neighbours(indices.astype(np.int64), cosines)
    write_groups(Path(job.work), name, {at: tiles}, neighbours)


def search_dataset(
    job: Job, plan: GroupPlan, graph: GraphParams, compute: ComputeParams
) -> tuple[list[str], dict[str, Any]]:
    """Make pixel graphs, the neighbours over the whole split, and groups that follow them."""
    work, numbering = Path(job.work), _numbering(job)
    names = make_pixel_graphs(job, plan, graph.pixel, compute)
    facts = index_facts(work)
    if facts is None:
        facts = build_index(job, numbering, graph.recall, graph.seed)
        complete_index(work, facts)
    click.echo(
        f"searching {facts['probes']} of {facts['cells']} cells for each patch: recall "
        f"{facts['recall']:.3f} on a sample"
    )
    blocks = range(len(numbering.block_firsts) - 1)
    jobs = {f"neighbours-{block:06d}": (block, facts["probes"]) for block in blocks}
    found = run_parts(fill_neighbours, job, jobs, compute, "kNN search")
    counts, totals = edges_between(work, found, numbering)
    rounds = following_groups(plan, numbering, counts, graph.seed)
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
    return [*names, *found, "tiles", "groups"], {**searched, "edges_seen": seen}


def build_index(job: Job, numbering: Numbering, wanted: float, seed: int) -> dict[str, Any]:
    """Write the index of all patches; find how many cells to look into for the wanted recall."""
    total = int(numbering.block_firsts[-1])
    generator = np.random.default_rng([seed, 1])
    cells = cell_count(total)
    plan = sample_plan(numbering.sizes.tolist(), cells * SAMPLE_PER_CELL, generator)
    sample = planned_tokens(job, numbering, plan, "sampling for cells")
    queries = np.sort(generator.choice(total, min(QUERIES, total), replace=False))
    rows = planned_tokens(job, numbering, numbering.by_tile(queries), "reading queries")
    own = own_ids(job, numbering, queries)
    exact = ExactTop(rows, own, neighbour_count(job.k, total))

    def blocks() -> Iterator[tuple[int, np.ndarray]]:
        firsts = numbering.block_firsts[:-1].tolist()
        for block, first in enumerate(track(firsts, "filling cells", unit="part")):
            tiles = numbering.tiles[numbering.blocks == block]
            tokens = unit_tokens(_opened(job), job.level, tiles)
            exact.add(first, tokens)
            yield first, tokens

    write_index(Path(job.work), empty_index(sample, cells, seed), blocks())
    index = open_index(job.work)
    probes, measured = choose_probes(index, rows, own, exact.indices, wanted)
    return {"cells": cells, "probes": probes, "recall": measured}


def planned_tokens(
    job: Job, numbering: Numbering, plan: list[np.ndarray], title: str
) -> np.ndarray:
    """Gather tokens of length 1 of the planned patches of every tile."""
    cache = _opened(job)
    channels = cache.channels(job.level)
    return gather(
        numbering.tiles, plan, channels, lambda tile: unit_tokens(cache, job.level, [tile]), title
    )


def own_ids(job: Job, numbering: Numbering, patches: np.ndarray) -> np.ndarray:
    """Give the range of ids that are no neighbours of each patch: int64 ``(n, 2)``."""
    if not job.other_images:
        return np.stack([patches, patches + 1], axis=1)
    return numbering.image_of(patches)


def fill_neighbours(job: Job, name: str, block: int, probes: int) -> None:
    """Search and write the neighbours of one block of patches."""
    numbering, index = _numbering(job), _index(job, probes)
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
    """Read tokens of some tiles at length 1: float32 ``(patches, C)``."""
    return unit_rows(cache.batch([level], tiles).astype(np.float32))


@lru_cache(maxsize=1)
def _opened(job: Job) -> Features:
    """Open the cache, once in each process."""
    return Features.open(job.features).beside(job.context)


@lru_cache(maxsize=1)
def _numbering(job: Job) -> Numbering:
    """Number the patches of the split, once in each process."""
    cache = _opened(job)
    tiles = cache.training_tiles(job.split)
    return Numbering.of(tiles, cache.sizes(tiles), cache.tiles["image"][tiles], job.block)


@lru_cache(maxsize=1)
def _index(job: Job, probes: int) -> faiss.Index:
    """Open the index of all patches, once in each process."""
    index = open_index(job.work)
    return to_gpu(index, probes) if job.gpu else index


STORED = "{stored} groups, {gb:.2f} GB"
SCOPES = {
    "group": Scope(GroupPlan.fewest, round_count, search_groups, STORED),
    "dataset": Scope(GroupPlan.patches, round_count, search_dataset, STORED),
    "batch": Scope(
        GroupPlan.fewest,
        lambda *_: 0,
        make_no_graphs,
        "no graphs; training makes those of {groups} new batches",
    ),
}


def command(params: str, features: str, context: str, out: str) -> None:
    """Do what the command line asks for."""
    make_graph(load(params), features, context, out)


if __name__ == "__main__":
    program("graph")
