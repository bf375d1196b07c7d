"""The train stage: cached tokens and graphs -> the head, and both K-means."""

from __future__ import annotations

import time
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from cache import heads, results
from cache.backbone import carry
from cache.features import Features
from cache.graphs import Graphs
from cache.store.artefact import fingerprint, publish, work_folder
from cache.store.errors import InputError
from pipeline.device import choose_device, return_large_arrays
from pipeline.features.tiles import sample_plan
from pipeline.features.whitening import unit_rows
from pipeline.graph.partition import round_count
from pipeline.head import discriminant, kmeans
from pipeline.head.discriminant import Discriminant
from pipeline.head.head import Head, initialise, start_at
from pipeline.head.objective import default_beta
from pipeline.head.training import Schedule, optimiser, tensor_cores, train_epoch
from stages import NO_GPU, Stage, way_out
from stages.batches import load_batches
from stages.params import Params, load
from stages.progress import bar
from stages.sample import gather

KMEANS_SAMPLE = 600  # training patches for each centre
LEAST_SAMPLE = 100_000  # and for all of them: few centres of few patches depend on the draw
LEAST_COARSE = 32  # clusters of the metric, however small K is
BLOCK = 16_384  # patches that are assigned at a time


def train(params: Params, features: str, context: str, graph: str, out: str, curve: str) -> None:
    """Train the eigenfunction head and fit both K-means on the cache.

    Args:
        features, context, graph: paths of what these stages wrote.
        out: folder of the head to write. Interrupted, the same call goes on from the last finished
            epoch.
        curve: path of the training curve to write.
    """
    return_large_arrays()
    cache = Features.open(features).beside(context)
    with Graphs(graph) as graphs:
        rounds = round_count(params.train.epochs, len(cache.views))
        graphs.check(cache.fingerprint, params.train_split, rounds)
        tiles = cache.training_tiles(params.train_split)
        check_clusters(params, cache, tiles)
        manifest = describe(params, cache, graphs)
        with work_folder(out, manifest["fingerprint"]) as work:
            head, rows, waited = fit_head(params, cache, graphs, work)
            fitted = fit_kmeans(params, cache, tiles, head)
            fit = cache.fit()
            heads.save_head(
                work / "head",
                head.state_dict(),
                {**fitted, **({"context": fit} if fit else {})},
                {**manifest, "curve": results.write_curve(curve, rows)},
            )
            carry(cache.manifest["model"], cache.manifest["weights"], work / "head")
            publish(work / "head", out)
    click.echo(
        f"{out}: K = {params.clusters}, {len(rows)} steps, loss {rows[-1]['loss']:.4f}, "
        f"waited {waited:.1%} of the time for data"
    )


def fit_head(
    params: Params, cache: Features, graphs: Graphs, work: Path
) -> tuple[Head, list[dict], float]:
    """Train to the end, from the last finished epoch if there is one.

    Returns the head, the curve, and the share of the time in which training waited for data.
    """
    with way_out(NO_GPU):
        device = choose_device(params.compute.device)
    head = build_head(params, cache).to(device).train()
    adam = optimiser(head, params.train.lr)
    checkpoint = work / "checkpoint.safetensors"
    stored = heads.load_checkpoint(checkpoint)
    if stored is None and params.train.start != "random":
        metric, centres = start_of(params, cache)
        start_at(head, centres, params.train.start_scale, metric)
    finished, rows = resume(stored, head, adam)
    groups, epochs = graphs.manifest["groups"], params.train.epochs
    beta, schedule = beta_of(params), schedule_of(params, groups)
    waited, began = [0.0], time.perf_counter()
    batches = load_batches(params, cache, graphs, finished, device, waited)
    diverged = way_out("lower `train.lr`, or extract the features again")
    with bar() as progress, tensor_cores(), closing(batches), diverged:
        task = progress.add_task("training", total=schedule.steps, unit="step")
        progress.advance(task, finished * groups)
        for epoch in range(finished, epochs):
            noise = torch.Generator(device).manual_seed(noise_seed(params.seed, epoch))
            chunk = islice(batches, groups)
            for row in train_epoch(head, adam, chunk, beta, schedule, epoch * groups, noise):
                rows.append({"step": len(rows), **row})
                progress.update(task, advance=1, description=f"training, loss {row['loss']:.4f}")
            state = heads.flatten_module(head) | heads.flatten_optimiser(adam)
            heads.save_checkpoint(checkpoint, state, {"epoch": epoch + 1, "rows": rows})
    return head.eval(), rows, waited[0] / (time.perf_counter() - began)


def build_head(params: Params, cache: Features) -> Head:
    """The head as the parameters describe it, with the initial weights of the seed."""
    with way_out("change `head.width` (null = all channels) or `head.head_dim`"):
        head = Head(**shape_of(params, cache))
    initialise(head, torch.Generator().manual_seed(params.seed))
    return head


def shape_of(params: Params, cache: Features) -> dict[str, Any]:
    """The arguments of `Head`; discriminants of no given number are as many as the channels."""
    channels = [cache.channels(level) for level in params.head.levels]
    shape = {**params.head.model_dump(exclude={"levels"}), "channels": channels}
    if params.train.start == "discriminant" and params.head.width is None:
        shape["width"] = sum(channels)
    return {**shape, "clusters": params.clusters}


def beta_of(params: Params) -> float:
    """The weight of the objective's penalty."""
    beta = params.train.beta
    return default_beta(params.clusters) if beta is None else beta


def schedule_of(params: Params, groups: int) -> Schedule:
    """The schedule of the whole training, a step for each group of a round in each epoch."""
    train = params.train
    steps = train.epochs * groups
    return Schedule(steps, train.lr, train.lr_end, train.tau_start, train.tau_end)


def noise_seed(seed: int, epoch: int) -> int:
    """Seed of what an epoch draws."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def start_of(params: Params, cache: Features) -> tuple[Discriminant | None, np.ndarray]:
    """Where training starts: the metric, if any, and float32 ``(K, width)`` centres under it.

    Both are fitted to one sample of the head's input.
    """
    tiles, levels = cache.training_tiles(params.train_split), params.head.levels
    plan, channels = kmeans_sample(params, cache, tiles), sum(map(cache.channels, levels))
    title = "sampling for the start"
    points = unit_rows(gather(tiles, plan, channels, lambda i: cache.batch(levels, [i]), title))
    seed, gpu, metric = params.seed, params.compute.device != "cpu", None
    if params.train.start == "discriminant":
        width, runs = shape_of(params, cache)["width"], params.train.discriminant.runs
        clusters = coarse_clusters(params, len(points))
        metric = discriminant.fit(points, width, clusters=clusters, runs=runs, seed=seed, gpu=gpu)
        points = metric.rows(points)
    return metric, kmeans.centres(points, params.clusters, spherical=True, seed=seed, gpu=gpu)


def coarse_clusters(params: Params, patches: int) -> int:
    """Clusters of each K-means that the metric is made from.

    Of no given number, half of K, but some tens at least: few clusters see few directions.
    """
    given = params.train.discriminant.clusters
    return given or min(max(params.clusters // 2, LEAST_COARSE), patches)


def kmeans_sample(params: Params, cache: Features, tiles: np.ndarray) -> list[np.ndarray]:
    """The patches of each tile that K-means is fitted to; the same for each of them."""
    generator = np.random.default_rng([params.seed, 1])
    return sample_plan(cache.sizes(tiles), sample_size(params.clusters), generator)


def sample_size(clusters: int) -> int:
    """How many training patches K-means is fitted to."""
    return max(clusters * KMEANS_SAMPLE, LEAST_SAMPLE)


@torch.inference_mode()
def fit_kmeans(params: Params, cache: Features, tiles: np.ndarray, head: Head) -> dict[str, dict]:
    """K-means on a sample of F (`kmeans`) and of the head's features (`ours_kmeans`).

    Beside them the mean features of the head's own clusters (`ours`), by which they are merged.
    """
    plan, level = kmeans_sample(params, cache, tiles), params.kmeans.level
    device = next(head.parameters()).device

    def features_of(tile: int) -> np.ndarray:
        tokens = torch.from_numpy(cache.batch(params.head.levels, [tile])).to(device).float()
        return head.features(tokens, [len(tokens)]).half().cpu().numpy()

    features = gather(tiles, plan, head.width, features_of, "sampling the head's features")
    blocks = torch.from_numpy(features).split(BLOCK)
    ids = torch.cat([head.last(part.to(device)).argmax(1).cpu() for part in blocks])
    empty = head.last.weight.cpu().numpy()
    fitted = {"ours": {"centroids": kmeans.means(features, ids.numpy(), empty)}}
    whitened = {"kmeans": params.kmeans.whiten, "ours_kmeans": None}
    title = "sampling for K-means"
    plain = gather(tiles, plan, cache.channels(level), lambda i: cache.tokens(level, i), title)
    for name, points in (("kmeans", plain), ("ours_kmeans", features)):
        fitted[name] = kmeans.fit(
            points,
            params.clusters,
            spherical=params.kmeans.spherical,
            whiten=whitened[name],
            seed=params.seed,
            gpu=params.compute.device != "cpu",
        )._asdict()
    return fitted


def check_clusters(params: Params, cache: Features, tiles: np.ndarray) -> None:
    """Find more clusters than patches, or a level that does not fit, before all computing."""
    patches = sum(cache.sizes(tiles))
    if params.clusters > patches:
        raise InputError(
            f"clusters ({params.clusters}) must not exceed the number of training patches "
            f"({patches}): lower `clusters` or add images to split {params.train_split}"
        )
    for level in (*params.head.levels, params.kmeans.level):
        cache.array(level)
    if params.train.start == "discriminant":
        check_discriminant(params, cache, min(patches, sample_size(params.clusters)))
    channels = cache.channels(params.kmeans.level)
    if (params.kmeans.whiten or 0) > channels:
        raise InputError(
            f"kmeans.whiten must be at most the {channels} channels of {params.kmeans.level}, "
            f"found {params.kmeans.whiten}: lower it, or set it to null"
        )


def check_discriminant(params: Params, cache: Features, patches: int) -> None:
    """Find more coarse clusters than sampled patches, or more discriminants than channels."""
    channels = sum(cache.channels(level) for level in params.head.levels)
    if (params.head.width or 0) > channels:
        raise InputError(
            f"head.width must be at most the {channels} channels of {params.head.levels} with "
            f"train.start discriminant, found {params.head.width}: lower it, or set it to null"
        )
    if (clusters := coarse_clusters(params, patches)) > patches:
        raise InputError(
            f"train.discriminant.clusters ({clusters}) must not exceed the number of training "
            f"patches that K-means sees ({patches}): lower it"
        )


def describe(params: Params, cache: Features, graphs: Graphs) -> dict:
    """What the head is made from, and what `segment` and `predict` need to use it."""
    choices = {
        "head": {**shape_of(params, cache), "levels": params.head.levels},
        "context": [*params.vit.context],
        "kmeans": params.kmeans.model_dump(),
        "train": params.train.model_dump(),
        "alpha": params.graph.alpha,
        "seed": params.seed,
        "graph": graphs.manifest["fingerprint"],
        "features": cache.fingerprint,
    }
    mark = fingerprint("head", heads.FORMAT, choices)
    return {**choices, "backbone": cache.manifest, "fingerprint": mark}


def resume(
    stored: tuple[dict[str, torch.Tensor], dict] | None,
    head: Head,
    adam: torch.optim.Optimizer,
) -> tuple[int, list[dict]]:
    """Restore a checkpoint if there is one; the next epoch and the curve so far."""
    if stored is None:
        return 0, []
    state, facts = stored
    heads.restore_module(head, state)
    heads.restore_optimiser(adam, state)
    click.echo(f"resumed: {facts['epoch']} epochs were finished")
    return facts["epoch"], facts["rows"]


@click.command(cls=Stage)
@click.option("--params", default="params.yaml", help="Choices.")
@click.option("--features", default="data/features.zarr", help="Feature cache.")
@click.option("--context", default="data/context.zarr", help="Cache of the level `context`.")
@click.option("--graph", default="data/graph.h5", help="Graph file.")
@click.option("--out", default="data/head", help="Folder of the head to write.")
@click.option("--curve", default="results/curve.csv", help="Training curve to write.")
def main(params: str, features: str, context: str, graph: str, out: str, curve: str) -> None:
    """Train the eigenfunction head and fit both K-means on the cache.

    Reads data/features.zarr, data/context.zarr and data/graph.h5 (no image, no ViT), writes
    data/head (the head, the K-means on the features F and on the head's features, a manifest) and
    results/curve.csv. Interrupted, it goes on from the last finished epoch.
    """
    train(load(params), features, context, graph, out, curve)


if __name__ == "__main__":
    main()
