"""The train stage: cached tokens and graphs -> the head, and both K-means."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from scipy.sparse import csr_array

from cache import heads, params, results
from cache.ahead import ahead
from cache.artefact import fingerprint, publish, work_folder
from cache.features import Derived, Features
from cache.graphs import Graphs, GroupGraph
from cache.progress import bar, track
from pipeline import context, kmeans
from pipeline.device import choose_device, return_large_arrays
from pipeline.graph import block_diagonal, kernel, restrict, to_torch
from pipeline.head import Head, initialise, start_at
from pipeline.objective import default_beta, learning_rate, temperature
from pipeline.training import Batch, optimiser, tensor_cores, train_step
from stages import Stage

READERS = 8  # threads that load batches for a GPU


@click.command(cls=Stage)
@click.option("--params", "params_path", default="params.yaml", help="Choices.")
@click.option("--features", "features_path", default="data/features.zarr", help="Feature cache.")
@click.option("--graph", "graph_path", default="data/graph.h5", help="Graph file.")
@click.option("--out", default="data/head", help="Folder of the head to write.")
@click.option("--curve", default="results/curve.csv", help="Training curve to write.")
def main(params_path: str, features_path: str, graph_path: str, out: str, curve: str) -> None:
    """Train the eigenfunction head and fit both K-means on the cache.

    Reads data/features.zarr and data/graph.h5 (no image, no ViT), writes data/head (the head, the
    K-means on the features F and on the head's features, a manifest) and results/curve.csv.
    Interrupted, it goes on from the last finished epoch.
    """
    return_large_arrays()
    chosen = params.load(params_path)
    features = Features.open(features_path)
    with Graphs(graph_path) as graphs:
        graphs.check_features(features.manifest["fingerprint"])
        features = with_context(features, graphs)
        tiles = features.tiles_of(chosen.data.train)
        _check_clusters(chosen, features, tiles)
        manifest = _manifest(chosen, features, graphs)
        with work_folder(out, manifest["fingerprint"]) as work:
            head, rows, waited = _fit(chosen, features, graphs, work)
            fitted = {**_fit_kmeans(chosen, features, tiles, head), "context": graphs.context()}
            heads.save_head(work / "head", head.state_dict(), fitted, manifest)
            results.write_curve(curve, rows)
            publish(work / "head", out)
    click.echo(
        f"{out}: K = {chosen.clusters}, {len(rows)} steps, loss {rows[-1]['loss']:.4f}, "
        f"waited {waited:.1%} of the time for data"
    )


def _check_clusters(chosen: params.Params, features: Features, tiles: np.ndarray) -> None:
    patches = sum(features.sizes(tiles))
    if chosen.clusters > patches:
        raise ValueError(
            f"clusters ({chosen.clusters}) must not exceed the number of training patches "
            f"({patches}): lower `clusters` or add images to split {chosen.data.train}"
        )
    for level in (*chosen.head.levels, chosen.kmeans.level):
        features.channels(level)


def with_context(features: Features, graphs: Graphs) -> Features:
    """The cache with the level `context`, as the graph was made with it."""
    found = context.Context(**graphs.context())
    levels = graphs.manifest["context"]["levels"]
    make = Derived(levels, found.channels, partial(context.apply, found))
    return features.using(context.NAME, make)


def _manifest(chosen: params.Params, features: Features, graphs: Graphs) -> dict:
    head = chosen.head.model_dump()
    channels = [features.channels(level) for level in chosen.head.levels]
    choices = {
        "head": {**head, "channels": channels, "clusters": chosen.clusters},
        "context": graphs.manifest["context"],
        "kmeans": chosen.kmeans.model_dump(),
        "train": chosen.train.model_dump(),
        "alpha": chosen.graph.alpha,
        "seed": chosen.seed,
        "graph": graphs.manifest["fingerprint"],
        "features": features.manifest["fingerprint"],
    }
    return {
        **choices,
        "backbone": features.manifest,
        "fingerprint": fingerprint("head", 1, choices),
    }


def build_head(chosen: params.Params, features: Features) -> Head:
    """The head as the parameters describe it, with the initial weights of the seed."""
    choices = chosen.head.model_dump(exclude={"levels"})
    channels = [features.channels(level) for level in chosen.head.levels]
    head = Head(channels, chosen.clusters, **choices)
    initialise(head, torch.Generator().manual_seed(chosen.seed))
    return head


def _fit(
    chosen: params.Params, features: Features, graphs: Graphs, work: Path
) -> tuple[Head, list[dict], float]:
    """Train to the end, from the last finished epoch if there is one.

    Returns the head, the curve, and the share of the time in which training waited for data.
    """
    device = choose_device(chosen.compute.device)
    head = build_head(chosen, features).to(device).train()
    adam = optimiser(head, chosen.train.lr)
    checkpoint = work / "checkpoint.safetensors"
    finished, rows = _resume(checkpoint, head, adam)
    if not finished and chosen.train.start == "kmeans":
        start_at(head, _start_centres(chosen, features), chosen.train.start_scale)
    per_epoch = graphs.manifest["groups"]
    waited, start = 0.0, time.perf_counter()
    loaded = batches(chosen, features, graphs, finished, device)
    with bar() as progress, tensor_cores(), closing(loaded):
        task = progress.add_task("training", total=chosen.train.epochs * per_epoch, unit="step")
        progress.advance(task, finished * per_epoch)
        for epoch in range(finished, chosen.train.epochs):
            steps = train_epoch(chosen, islice(loaded, per_epoch), per_epoch, head, adam, epoch)
            for row, seconds in steps:
                rows.append({"step": len(rows), **row})
                waited += seconds
                progress.update(task, advance=1, description=f"training, loss {row['loss']:.4f}")
            state = {**heads.flatten_module(head), **heads.flatten_optimiser(adam)}
            heads.save_checkpoint(checkpoint, state, {"epoch": epoch + 1, "rows": rows})
    return head.eval(), rows, waited / (time.perf_counter() - start)


def _start_centres(chosen: params.Params, features: Features) -> np.ndarray:
    """Centres of spherical K-means on a sample of the head's input: float32 ``(K, C)``."""
    tiles, levels = features.tiles_of(chosen.data.train), chosen.head.levels
    sample = _sample(chosen, features, tiles)
    tracked = zip(track(tiles, "sampling for the start"), sample, strict=True)
    points = [features.batch(levels, [tile])[rows] for tile, rows in tracked if len(rows)]
    return kmeans.centres(
        kmeans.unit_rows(np.concatenate(points).astype(np.float32)),
        chosen.clusters,
        iterations=chosen.kmeans.iterations,
        spherical=True,
        seed=chosen.seed,
        gpu=chosen.compute.device != "cpu",
    )


def _sample(chosen: params.Params, features: Features, tiles: np.ndarray) -> list[np.ndarray]:
    """The patches of each tile that K-means is fitted to; the same for each of them."""
    wanted = chosen.clusters * chosen.kmeans.points_per_centroid
    generator = np.random.default_rng([chosen.seed, 1])
    return kmeans.sample_plan(features.sizes(tiles), wanted, generator)


def train_epoch(
    chosen: params.Params,
    loaded: Iterable[tuple[Batch, float]],
    per_epoch: int,
    head: Head,
    adam: torch.optim.Optimizer,
    epoch: int,
) -> Iterator[tuple[dict, float]]:
    """One step for each batch of an epoch; its noise follows from the seed and the epoch.

    Yields the step's row of the curve and the seconds that were waited for its batch.
    """
    seeds = np.random.SeedSequence([chosen.seed, epoch])
    device = next(head.parameters()).device
    noise = torch.Generator(device).manual_seed(int(seeds.generate_state(1)[0]))
    choices = chosen.train
    beta = default_beta(chosen.clusters) if choices.beta is None else choices.beta
    steps = choices.epochs * per_epoch
    for step, (batch, waited) in enumerate(loaded, epoch * per_epoch):
        tau = temperature(step, steps, choices.tau_start, choices.tau_end)
        lr = learning_rate(step, steps, choices.lr, choices.lr_end)
        for group in adam.param_groups:
            group["lr"] = lr
        found = train_step(
            head, adam, batch, tau=tau, beta=beta, scale=choices.scale, generator=noise
        )
        yield {**found, "tau": tau, "lr": lr}, waited


def batches(
    chosen: params.Params,
    features: Features,
    graphs: Graphs,
    epoch: int,
    device: torch.device,
) -> Generator[tuple[Batch, float], None, None]:
    """Every step's batch on its device, from the start of an epoch on; the seconds waited for it.

    An epoch takes the groups of one round in an order that follows from the seed and the epoch.
    """

    def load(place: tuple[int, int]) -> Batch:
        return load_batch(chosen, features, graphs, *place).to(device)

    rounds, groups = graphs.manifest["rounds"], graphs.manifest["groups"]
    places = (
        (number % rounds, int(group))
        for number in range(epoch, chosen.train.epochs)
        for group in np.random.default_rng([chosen.seed, number]).permutation(groups)
    )
    # A step takes all cores of a CPU; a GPU leaves them idle, and waits for more than one of them.
    others = (os.cpu_count() or 1) - 1
    threads = 1 if device.type == "cpu" else max(1, min(READERS, others))
    with closing(ahead(load, places, threads=threads, waiting=threads + 1)) as loaded:
        while True:
            start = time.perf_counter()
            found = next(loaded, None)
            if found is None:
                return
            yield found[1], time.perf_counter() - start


def load_batch(
    chosen: params.Params, features: Features, graphs: Graphs, round_: int, group: int
) -> Batch:
    """Tokens and kernel (Eq. 4) of one group, on the CPU."""
    found = graphs.group(round_, group)
    sizes = features.sizes(found.tiles)
    graph = _feature_graph(found, sizes)
    pixels = block_diagonal([graphs.pixel_graph(int(tile)) for tile in found.tiles])
    kappa = kernel(graph, pixels, chosen.graph.alpha)
    tokens = _tokens(features, chosen.head.levels, found.tiles)
    return Batch(tokens, sizes, to_torch(kappa, "cpu"))


def _feature_graph(found: GroupGraph, sizes: list[int]) -> csr_array:
    """The edges inside a group as a matrix over its patches."""
    if found.firsts is not None:
        return restrict(*found.edges, list(zip(found.firsts.tolist(), sizes, strict=True)))
    indptr, columns, weights = found.edges  # int32, for SciPy widens all indices to the widest
    edges = (weights, columns.astype(np.int32), indptr.astype(np.int32))
    return csr_array(edges, shape=(sum(sizes), sum(sizes)))


def _tokens(features: Features, levels: list[Any], tiles: np.ndarray) -> torch.Tensor:
    """Tokens of some tiles, levels side by side: float16 ``(patches, channels)``."""
    return torch.from_numpy(features.batch(levels, tiles))


def _resume(checkpoint: Path, head: Head, adam: torch.optim.Optimizer) -> tuple[int, list[dict]]:
    """Restore a checkpoint if there is one; the next epoch and the curve so far."""
    found = heads.load_checkpoint(checkpoint)
    if found is None:
        return 0, []
    state, meta = found
    heads.restore_module(head, state)
    heads.restore_optimiser(adam, state)
    click.echo(f"resumed: {meta['epoch']} epochs were finished")
    return meta["epoch"], meta["rows"]


@torch.inference_mode()
def _fit_kmeans(
    chosen: params.Params, features: Features, tiles: np.ndarray, head: Head
) -> dict[str, dict]:
    """K-means on a sample of F (`kmeans`) and of the head's features (`ours_kmeans`)."""
    choices = chosen.kmeans
    sample = _sample(chosen, features, tiles)
    device = next(head.parameters()).device
    plain, learned = [], []
    for tile, rows in zip(track(tiles, "sampling for K-means"), sample, strict=True):
        plain.append(features.tokens(choices.level, tile)[rows])
        tokens = _tokens(features, chosen.head.levels, np.array([tile])).to(device).float()
        learned.append(head.features(tokens, [len(tokens)])[rows].half().cpu().numpy())
    fitted = {}
    for name, points, whiten in (
        ("kmeans", plain, choices.whiten),
        ("ours_kmeans", learned, None),
    ):
        fitted[name] = kmeans.fit(
            np.concatenate(points).astype(np.float32),
            chosen.clusters,
            iterations=choices.iterations,
            spherical=choices.spherical,
            whiten=whiten,
            seed=chosen.seed,
            gpu=chosen.compute.device != "cpu",
        )
    return {name: model._asdict() for name, model in fitted.items()}


if __name__ == "__main__":
    main()
