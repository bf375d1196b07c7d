"""The graph stage: cached features -> kNN graphs of groups and pixel graphs of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from cache import params, parts
from cache.artefact import fingerprint, size, work_folder
from cache.features import Features
from cache.graphs import GroupGraph, write_group, write_pixels
from cache.jobs import run
from pipeline.graph import pixel_edges
from pipeline.knn import nearest, neighbour_count
from pipeline.partition import partition
from stages import Stage

PIXEL_TILES = 64  # tiles whose pixel graphs make one part


@click.command(cls=Stage)
@click.option("--params", "params_path", default="params.yaml", help="Choices.")
@click.option("--features", "features_path", default="data/features.zarr", help="Feature cache.")
@click.option("--out", default="data/graph.h5", help="Graph file to write.")
def main(params_path: str, features_path: str, out: str) -> None:
    """Build the kNN graphs and pixel graphs from the cache.

    Reads data/features.zarr, writes data/graph.h5: for every group of training images the k nearest
    neighbours of each patch (Eq. 2), and the pixel graph of each tile (Eq. 3). Interrupted, it goes
    on where it was.
    """
    chosen = params.load(params_path)
    features = Features.open(features_path)
    tiles = features.tiles_of(chosen.data.train)
    groups = _groups(features, tiles, chosen.graph)
    level = chosen.graph.level
    for group in groups.values():  # a k that is too large is found before hours are spent
        neighbour_count(chosen.graph.k, sum(features.sizes(group)))
    features.array(level)
    manifest = _manifest(chosen, features, groups)
    with work_folder(out, manifest["fingerprint"]) as work:
        pixel_parts = {
            f"pixels-{i:06d}": tiles[i : i + PIXEL_TILES] for i in range(0, len(tiles), PIXEL_TILES)
        }
        names = {at: f"group-{at[0]:03d}-{at[1]:06d}" for at in groups}
        done = {n for n in (*pixel_parts, *names.values()) if parts.finished(work, n)}
        if done:
            click.echo(f"resumed: {len(done)} of {len(pixel_parts) + len(names)} parts were done")
        settings = [(pixel.k, pixel.weight) for pixel in chosen.graph.pixel]
        pixel_jobs = [
            (str(work), name, features_path, part.tolist(), settings)
            for name, part in pixel_parts.items()
            if name not in done
        ]
        run(fill_pixels, pixel_jobs, chosen.compute.scheduler, "pixel graphs", "part")
        gpu = chosen.compute.device != "cpu"
        group_jobs = [
            (str(work), names[at], at, features_path, level, group.tolist(), chosen.graph.k, gpu)
            for at, group in groups.items()
            if names[at] not in done
        ]
        run(fill_group, group_jobs, chosen.compute.scheduler, "kNN graphs", "group")
        parts.assemble(work, [*pixel_parts, *names.values()], out, manifest)
    gigabytes = size(out) / 1e9
    click.echo(f"{out}: {len(groups)} groups of {len(tiles)} tiles, {gigabytes:.2f} GB")


def _groups(
    features: Features, tiles: np.ndarray, choices: params.GraphParams
) -> dict[tuple[int, int], np.ndarray]:
    """Tile ids of every (round, group); the tiles of an image stay together."""
    owner = features.tiles["image"][tiles]
    rounds = partition(
        np.unique(owner).tolist(),
        choices.group_images,
        choices.rounds,
        np.random.default_rng(choices.seed),
    )
    return {
        (r, g): tiles[np.isin(owner, images)]
        for r, groups in enumerate(rounds)
        for g, images in enumerate(groups)
    }


def _manifest(
    chosen: params.Params, features: Features, groups: dict[tuple[int, int], np.ndarray]
) -> dict:
    choices = chosen.graph.model_dump(exclude={"alpha"})
    made_from = features.manifest["fingerprint"]
    return {
        **choices,
        "features": made_from,
        "split": chosen.data.train,
        "groups": len(groups) // chosen.graph.rounds,
        "fingerprint": fingerprint("graph", 1, choices, made_from, chosen.data.train),
    }


def fill_pixels(
    work: str,
    name: str,
    features_path: str,
    tiles: Sequence[int],
    settings: Sequence[tuple[int, float]],
) -> None:
    """Compute and write the pixel graphs of some tiles."""
    features = Features.open(features_path)
    graphs = []
    for tile in tiles:
        row = features.tiles[tile]
        height, width = int(row["grid_h"]), int(row["grid_w"])
        graphs.append(pixel_edges(features.rgb(tile), height, width, settings))
    write_pixels(Path(work), name, tiles, graphs)


def fill_group(
    work: str,
    name: str,
    at: tuple[int, int],
    features_path: str,
    level: int | str,
    tiles: Sequence[int],
    k: int | float,
    gpu: bool,
) -> None:
    """Search and write the kNN graph of one group of tiles."""
    features = Features.open(features_path)
    rows = np.concatenate([features.tokens(level, tile) for tile in tiles]).astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    indices, similarities = nearest(rows, neighbour_count(k, len(rows)), gpu=gpu)
    write_group(Path(work), name, at, GroupGraph(np.asarray(tiles), indices, similarities))


if __name__ == "__main__":
    main()
