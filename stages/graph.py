"""The graph stage: cached features -> feature graphs of patches and pixel graphs of tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from scipy.sparse import csr_array

from cache import params, parts
from cache.artefact import fingerprint, size, work_folder
from cache.cells import (
    CELLS,
    Edges,
    open_cells,
    read_between,
    read_found,
    write_between,
    write_cells,
    write_found,
)
from cache.features import Derived, Features
from cache.graphs import (
    FORMAT,
    Csr,
    read_context,
    read_edges,
    write_context,
    write_edges,
    write_group,
    write_groups,
    write_pixels,
    write_tiles,
)
from cache.part_jobs import fill
from cache.progress import track
from pipeline import context
from pipeline.cells import (
    SAMPLE_PER_CELL,
    RunningTop,
    cell_count,
    coarse_centres,
    probes_for,
    recall_of,
    search_cells,
)
from pipeline.graph import feature_graph, half_edges, pixel_edges, sum_edges
from pipeline.kmeans import sample_plan, unit_rows
from pipeline.knn import nearest, neighbour_count, top
from pipeline.partition import Plan, follow, partition, share_inside, strongest
from stages import Stage

CONTEXT = "context"  # the part that holds it
PIXEL_TILES = 64  # tiles whose pixel graphs make one part
BLOCK_PATCHES = 32768  # patches whose edges make one part, about
PARTNERS = 64  # of each image, those that most edges join to it: enough for any batch
RECALL_QUERIES = 1000  # patches whose exact neighbours are found, to set and to measure the recall

Groups = dict[tuple[int, int], np.ndarray]


class Job(NamedTuple):
    """All that a worker needs to make any part; small enough to send around."""

    work: str
    features: str
    split: str
    level: int | str
    k: int | float
    gpu: bool
    context: tuple[int | str, ...]  # the levels that are put into context

    @classmethod
    def of(cls, chosen: params.Params, work: Path, features: str) -> Job:
        """The job that the parameters describe."""
        graph, gpu = chosen.graph, chosen.compute.device != "cpu"
        levels = tuple(chosen.context.levels)
        return cls(str(work), features, chosen.data.train, graph.level, graph.k, gpu, levels)

    def open(self) -> Features:
        """The cache, with the level that is made of others."""
        found = context.Context(**read_context(Path(self.work), CONTEXT))
        make = Derived(self.context, found.channels, partial(context.apply, found))
        return Features.open(self.features).using(context.NAME, make)


@click.command(cls=Stage)
@click.option("--params", "params_path", default="params.yaml", help="Choices.")
@click.option("--features", "features_path", default="data/features.zarr", help="Feature cache.")
@click.option("--out", default="data/graph.h5", help="Graph file to write.")
def main(params_path: str, features_path: str, out: str) -> None:
    """Build the kNN graphs and pixel graphs from the cache.

    Reads data/features.zarr, writes data/graph.h5: what puts tokens into context, the k nearest
    neighbours of each training patch (Eq. 2), in its group of images or in the whole split, the
    groups, and the pixel graph of each tile (Eq. 3). Interrupted, it goes on where it was.
    """
    chosen = params.load(params_path)
    features = Features.open(features_path)
    tiles = features.tiles_of(chosen.data.train)
    groups = _groups(features, tiles, chosen.graph)
    _check(chosen, features, tiles, groups)
    manifest = _manifest(chosen, features, len(groups))
    with work_folder(out, manifest["fingerprint"]) as work:
        if not parts.finished(work, CONTEXT):
            write_context(work, CONTEXT, _fit_context(features, tiles, chosen)._asdict())
        job = Job.of(chosen, work, features_path)
        names = [CONTEXT, *_pixel_graphs(job, tiles, chosen)]
        if chosen.graph.scope == "group":
            jobs = {f"group-{r:03d}-{g:06d}": ((r, g), t.tolist()) for (r, g), t in groups.items()}
            names += fill(fill_group, job, jobs, chosen.compute, "kNN graphs")
        else:
            added, seen = _dataset_graph(job, job.open(), chosen)
            names, manifest = names + added, {**manifest, **seen}
        parts.assemble(work, names, out, manifest)
    gigabytes = size(out) / 1e9
    click.echo(f"{out}: {len(groups)} groups of {len(tiles)} tiles, {gigabytes:.2f} GB")


def _check(chosen: params.Params, features: Features, tiles: np.ndarray, groups: Groups) -> None:
    """Find a k that is too large, or a missing level, before hours are spent."""
    searched = groups.values() if chosen.graph.scope == "group" else [tiles]
    for together in searched:
        neighbour_count(chosen.graph.k, sum(features.sizes(together)))
    for level in {*chosen.context.levels, chosen.graph.level} - {context.NAME}:
        features.array(level)


def _fit_context(features: Features, tiles: np.ndarray, chosen: params.Params) -> context.Context:
    """Fit the context to a sample of the training patches."""
    choices = chosen.context
    generator = np.random.default_rng([chosen.graph.seed, 2])
    plan = sample_plan(features.sizes(tiles), choices.patches, generator)
    points: list[list[np.ndarray]] = [[] for _ in choices.levels]
    for tile, rows in zip(track(tiles, "sampling for the context"), plan, strict=True):
        for level, found in zip(choices.levels, points, strict=True):
            found.append(features.tokens(level, tile)[rows].astype(np.float32))
    settings = (choices.components, choices.weights, choices.temperature, choices.reach)
    return context.fit([np.concatenate(found) for found in points], *settings)


def _groups(features: Features, tiles: np.ndarray, choices: params.GraphParams) -> Groups:
    """Tile ids of every (round, group), images drawn at random; an image's tiles stay together."""
    owner = features.tiles["image"][tiles]
    images = np.unique(owner).tolist()
    generator = np.random.default_rng(choices.seed)
    rounds = partition(images, choices.group_images, choices.rounds, generator)
    return _of_images(rounds, owner, tiles)


def _of_images(
    rounds: Sequence[Sequence[np.ndarray]], owner: np.ndarray, tiles: np.ndarray
) -> Groups:
    return {
        (r, g): tiles[np.isin(owner, images)]
        for r, groups in enumerate(rounds)
        for g, images in enumerate(groups)
    }


def _manifest(chosen: params.Params, features: Features, groups: int) -> dict:
    choices = chosen.graph.model_dump(exclude={"alpha"})
    made_from = features.manifest["fingerprint"]
    around = chosen.context.model_dump()
    return {
        "format": FORMAT,
        **choices,
        "context": around,
        "features": made_from,
        "split": chosen.data.train,
        "groups": groups // chosen.graph.rounds,
        "fingerprint": fingerprint("graph", FORMAT, choices, around, made_from, chosen.data.train),
    }


def _pixel_graphs(job: Job, tiles: np.ndarray, chosen: params.Params) -> list[str]:
    settings = [(pixel.k, pixel.weight) for pixel in chosen.graph.pixel]
    jobs = {
        f"pixels-{i:06d}": (tiles[i : i + PIXEL_TILES].tolist(), settings)
        for i in range(0, len(tiles), PIXEL_TILES)
    }
    return fill(fill_pixels, job, jobs, chosen.compute, "pixel graphs")


def fill_pixels(
    job: Job, name: str, tiles: Sequence[int], settings: Sequence[tuple[int, float]]
) -> None:
    """Compute and write the pixel graphs of some tiles."""
    features = Features.open(job.features)
    graphs = []
    for tile in tiles:
        row = features.tiles[tile]
        height, width = int(row["grid_h"]), int(row["grid_w"])
        graphs.append(pixel_edges(features.rgb(tile), height, width, settings))
    write_pixels(Path(job.work), name, tiles, graphs)


def fill_group(job: Job, name: str, at: tuple[int, int], tiles: Sequence[int]) -> None:
    """Search and write the feature graph of one group of tiles."""
    rows = _unit_rows(job.open(), job.level, tiles)
    found = nearest(rows, neighbour_count(job.k, len(rows)), gpu=job.gpu)
    write_group(Path(job.work), name, at, np.asarray(tiles), _csr(feature_graph(*found)))


def _unit_rows(features: Features, level: int | str, tiles: Sequence[int]) -> np.ndarray:
    return unit_rows(features.batch([level], tiles).astype(np.float32))


def _csr(graph: csr_array) -> Csr:
    return Csr(graph.indptr, graph.indices, graph.data)


def _dataset_graph(
    job: Job, features: Features, chosen: params.Params
) -> tuple[list[str], dict[str, Any]]:
    """One graph over all patches of the split, and groups that follow its edges.

    Returns the names of the parts, and for the manifest how it was searched and how many of their
    edges the groups see.
    """
    plan = _plan(job)
    if not parts.finished(job.work, CELLS):
        _fill_cells(job, features, plan, chosen.graph.recall, chosen.graph.seed)
    with open_cells(job.work) as cells:
        facts = cells.facts
    click.echo(
        f"searching {facts['probes']} of {facts['cells']} cells for each patch: recall "
        f"{facts['found_recall']:.3f} on the sample that set this number"
        if facts["probes"] < facts["cells"]
        else "searching all patches: exact, up to the float16 of what is searched"
    )
    names = {}
    for kind, function, text in (
        ("found", fill_found, "kNN search"),
        ("edges", fill_edges, "joining edges"),
        ("between", fill_between, "edges between images"),
    ):
        jobs = {_name(kind, block): (block,) for block in range(len(plan.block_firsts) - 1)}
        names[kind] = fill(function, job, jobs, chosen.compute, text)
    groups, seen = _following(job, plan, names["between"], chosen.graph)
    write_tiles(Path(job.work), "tiles", plan.tiles, plan.sizes.tolist(), plan.blocks)
    write_groups(Path(job.work), "groups", groups)
    return [*names["edges"], "tiles", "groups"], {**facts, **seen}


def _name(kind: str, block: int) -> str:
    return f"{kind}-{block:06d}"


@lru_cache(maxsize=1)
def _plan(job: Job) -> Plan:
    features = Features.open(job.features)
    tiles = features.tiles_of(job.split)
    return Plan.of(tiles, features.sizes(tiles), features.tiles["image"][tiles], BLOCK_PATCHES)


def _blocks(
    features: Features, level: int | str, plan: Plan, description: str
) -> Iterator[tuple[int, np.ndarray]]:
    """First patch and unit rows, float32 ``(n, C)``, of every block."""
    for block, first in enumerate(track(plan.block_firsts[:-1].tolist(), description, unit="part")):
        yield first, _unit_rows(features, level, plan.tiles[plan.blocks == block])


def _fill_cells(job: Job, features: Features, plan: Plan, recall: float, seed: int) -> None:
    """Sort all patches into cells; choose how many cells a search has to look into."""
    total = int(plan.block_firsts[-1])
    count = cell_count(total)
    generator = np.random.default_rng([seed, 1])
    sample = sample_plan(plan.sizes.tolist(), count * SAMPLE_PER_CELL, generator)
    picked = [
        features.tokens(job.level, tile)[rows]
        for tile, rows in zip(track(plan.tiles, "sampling for cells"), sample, strict=True)
        if len(rows)
    ]
    points = unit_rows(np.concatenate(picked).astype(np.float32))
    centres = coarse_centres(points, count, seed, gpu=job.gpu)
    queries = np.sort(generator.choice(total, min(RECALL_QUERIES, total), replace=False))
    wanted = _rows_of(job, features, plan, queries)
    cells, neighbours = _assign(job, features, plan, centres, queries, wanted)
    ranked = np.argsort(-(wanted @ centres.T), axis=1, kind="stable")
    probes = count if recall == 1 else probes_for(cells[neighbours], ranked, recall)
    measured = recall_of(cells[neighbours], ranked, probes)
    facts = {"cells": count, "probes": probes, "found_recall": measured}
    blocks = _blocks(features, job.level, plan, "writing cells")
    write_cells(Path(job.work), centres, cells, blocks, facts)


def _rows_of(job: Job, features: Features, plan: Plan, patches: np.ndarray) -> np.ndarray:
    """Unit rows, float32 ``(n, C)``, of some patches, given by their ascending numbers."""
    tile = plan.tile_of(patches)
    rows = [
        features.tokens(job.level, plan.tiles[t])[patches[tile == t] - plan.firsts[t]]
        for t in np.unique(tile)
    ]
    return unit_rows(np.concatenate(rows).astype(np.float32))


def _assign(
    job: Job,
    features: Features,
    plan: Plan,
    centres: np.ndarray,
    queries: np.ndarray,
    wanted: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The cell of every patch, int32, and the exact neighbours of the queries ``(q, k)``.

    Args:
        centres: float32 ``(cells, C)``.
        queries: int64 ``(q,)``, numbers of patches; ``wanted`` their unit rows ``(q, C)``.
    """
    k = neighbour_count(job.k, int(plan.block_firsts[-1]))
    cells = np.empty(plan.block_firsts[-1], np.int32)
    best = RunningTop(wanted, queries, k)
    for first, rows in _blocks(features, job.level, plan, "sorting into cells"):
        cells[first : first + len(rows)] = top(rows, centres, 1, gpu=job.gpu)[0][:, 0]
        best.add(np.arange(first, first + len(rows)), rows, gpu=job.gpu)
    return cells, best.result()[0]


def fill_found(job: Job, name: str, block: int) -> None:
    """Search the neighbours of one block of patches; write the edges in both directions."""
    plan = _plan(job)
    first, stop = plan.block_firsts[block : block + 2].tolist()
    rows = _unit_rows(job.open(), job.level, plan.tiles[plan.blocks == block])
    k = neighbour_count(job.k, int(plan.block_firsts[-1]))
    with open_cells(job.work) as cells:
        count, probes = cells.facts["cells"], cells.facts["probes"]
        probed = top(rows, cells.centres, probes, gpu=job.gpu)[0] if probes < count else None
        own = np.arange(first, stop)
        found = search_cells(rows, own, probed, count, cells.read, k, gpu=job.gpu)
    edges = Edges(*half_edges(*found, first))
    write_found(Path(job.work), name, edges, plan.block_firsts[:-1].tolist())


def fill_edges(job: Job, name: str, block: int) -> None:
    """Join the edges that end in one block of patches: its rows of the symmetric graph."""
    plan = _plan(job)
    first, stop = plan.block_firsts[block : block + 2].tolist()
    found = [_name("found", other) for other in range(len(plan.block_firsts) - 1)]
    edges = read_found(Path(job.work), found, block)
    shape = (stop - first, int(plan.block_firsts[-1]))
    graph = sum_edges(edges.rows - first, edges.columns, edges.weights, shape)
    write_edges(Path(job.work), name, block, _csr(graph))


def fill_between(job: Job, name: str, block: int) -> None:
    """Count the edges between the images of one block and all images; keep the most counted."""
    plan = _plan(job)
    first, stop = plan.block_firsts[block : block + 2].tolist()
    indptr, columns = read_edges(Path(job.work), _name("edges", block), block)
    start = np.repeat(np.arange(first, stop), np.diff(indptr))
    row, column = (plan.owner[plan.tile_of(patches)] for patches in (start, columns))
    images, local = np.unique(row, return_inverse=True)
    ones = np.ones(len(row), np.int64)
    counts = sum_edges(local, column, ones, (len(images), plan.owner[-1] + 1))
    totals = counts.sum(axis=1)
    write_between(Path(job.work), name, images, strongest(counts, PARTNERS), totals)


def _following(
    job: Job, plan: Plan, names: Sequence[str], choices: params.GraphParams
) -> tuple[Groups, dict[str, float]]:
    """Groups of images that are neighbours in the graph, and the share of edges they see."""
    images = int(plan.owner[-1]) + 1
    counts, totals = read_between(Path(job.work), names, images)
    generator = np.random.default_rng(choices.seed)
    rounds = follow(counts, choices.group_images, choices.rounds, generator)
    drawn = partition(range(images), choices.group_images, choices.rounds, generator)
    seen, random = (share_inside(counts, totals, groups) for groups in (rounds, drawn))
    click.echo(
        f"a batch sees {seen:.1%} of the edges of its patches (batches of random images: "
        f"{random:.1%})"
    )
    return _of_images(rounds, plan.owner, plan.tiles), {"edges_seen": seen, "at_random": random}


if __name__ == "__main__":
    main()
