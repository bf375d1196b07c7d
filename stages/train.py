"""The train stage: cached tokens and graphs -> the head, and both K-means."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from cache import heads, results
from cache.backbone import carry
from cache.features import Features
from cache.graphs import Graphs
from cache.store.artefact import fingerprint, publish, work_folder
from cache.store.errors import InputError
from pipeline.device import return_large_arrays, use_bfloat16
from pipeline.features.tiles import sample_plan
from pipeline.features.whitening import unit_rows
from pipeline.graph.partition import round_count
from pipeline.head import kmeans
from pipeline.head.head import Head, initialise
from pipeline.head.objective import default_beta
from pipeline.head.semi_supervised import NAME as SEMI_SUPERVISED
from pipeline.head.start import DiscriminantStart, KMeansStart, Start
from pipeline.head.training import Schedule, optimiser, tensor_cores, train_epoch
from stages import program, way_out
from stages.running.batches import READERS, Batches, load_batches, open_source
from stages.running.estimates import kmeans_words
from stages.running.hardware import chosen_device
from stages.running.labelled import Patches, learn_labels, read_knowledge, split_graphs
from stages.running.progress import alive, bar
from stages.running.sample import gather
from stages.settings.params import Params, load
from stages.settings.sections import HeadParams, KMeansParams, TrainParams

KMEANS_SAMPLE = 600  # training patches for each centre
LEAST_SAMPLE = 100_000  # and for all of them: few centres of few patches depend on the draw
BLOCK = 16_384  # patches that are assigned at a time
WAY_OUT = "lower `head.width` (null = all channels) or `train.discriminant.clusters`"


class Sample(NamedTuple):
    """The training patches that K-means and the start are fitted to.

    Attributes:
        cache: holds their tokens.
        tiles: ids of the tiles of the training split.
        plan: of each tile the rows that are drawn.
    """

    cache: Features
    tiles: np.ndarray
    plan: list[np.ndarray]

    @classmethod
    def draw(cls, cache: Features, split: str, clusters: int, seed: int) -> Sample:
        """Draw patches for so many centres; every fit with this seed has the same ones."""
        tiles, generator = cache.training_tiles(split), np.random.default_rng([seed, 1])
        return cls(cache, tiles, sample_plan(cache.sizes(tiles), sample_size(clusters), generator))

    def rows(self, channels: int, rows_of: Callable[[int], np.ndarray], title: str) -> np.ndarray:
        """Gather what ``rows_of`` a tile gives for its patches: float32 ``(n, channels)``."""
        threads = READERS if torch.cuda.is_available() else 1  # the cores of a CPU compute
        return gather(self.tiles, self.plan, channels, rows_of, title, threads)


def train(
    params: Params,
    features: str,
    context: str,
    graph: str,
    index: str,
    labels: str,
    out: str,
    curve: str,
) -> None:
    """Train the eigenfunction head and fit both K-means on the cache.

    With `train.labelled` it also fits `semi_supervised`, which says classes; without, no label is
    opened.

    Args:
        features, context, graph, index, labels: paths of what these stages wrote.
        out: folder of the head to write. Interrupted, the same call goes on from the last finished
            epoch.
        curve: path of the training curve to write.
    """
    return_large_arrays()
    device = chosen_device(params.compute.device)
    seed, gpu, levels = params.seed, params.compute.gpu, params.head.levels
    cache = Features.open(features).beside(context)
    start = start_of(params.train, params.clusters, seed, gpu)
    with Graphs(graph) as graphs:
        rounds = round_count(params.train.epochs, len(cache.views))
        graphs.check(cache.fingerprint, params.train_split, rounds)
        sample = Sample.draw(cache, params.train_split, params.clusters, seed)
        check_sizes(params.clusters, params.head, params.kmeans, start, sample)
        shape = head_shape(params.head, params.clusters, start, cache)
        manifest = describe(params, shape, cache, graphs, device)
        with work_folder(out, manifest["fingerprint"]) as work:
            head = build_head(shape, seed).to(device)
            source = open_source(cache, graphs, levels, params.graph.alpha, seed, gpu)
            begin = partial(start.apply, head, partial(head_input, sample, levels))
            checkpoint = work / "checkpoint.pt"
            rows, waited = fit_head(head, begin, source, params.train, checkpoint)
            fitted = fit_kmeans(sample, head, levels, params.kmeans, seed, gpu)
            patches = Patches(cache, params.train_split, head, levels)
            learned, facts = learn(params, patches, graphs, index, labels, manifest["fingerprint"])
            fit = cache.fit()
            heads.save_head(
                work / "head",
                head.state_dict(),
                {**fitted, **learned, **({"context": fit} if fit else {})},
                {**manifest, "curve": results.write_curve(curve, rows), "labelled": facts},
            )
            carry(cache.manifest["model"], cache.manifest["weights"], work / "head")
            publish(work / "head", out)
    click.echo(
        f"{out}: K = {params.clusters}, {len(rows)} steps, loss {rows[-1]['loss']:.4f}, "
        f"waited {waited:.1%} of the time for data"
    )


def learn(
    params: Params, patches: Patches, graphs: Graphs, index: str, labels: str, head: str
) -> tuple[dict[str, dict], dict[str, Any] | None]:
    """Fit `semi_supervised` where labels are given; give its arrays, and facts about the labels."""
    choices, seed = params.train, params.seed
    if choices.labelled is None:
        return {}, None
    found = read_knowledge(patches, choices, params.trained, index, labels, head, seed)
    parts = split_graphs(graphs, patches, params.graph.alpha)
    if graphs.manifest["scope"] == "batch":
        click.echo("graph.scope batch keeps no graph: labels are not spread", err=True)
    classifier = learn_labels(patches, found, parts, seed)
    click.echo(f"{SEMI_SUPERVISED}: learned from {found.said}")
    arrays = {name: value.cpu().numpy() for name, value in classifier._asdict().items()}
    colours = None if found.colours is None else found.colours.tolist()
    facts = {"said": found.said, "classes": found.classes, "colours": colours}
    return {SEMI_SUPERVISED: arrays}, facts


def fit_head(
    head: Head,
    begin: Callable[[], None],
    source: Batches,
    choices: TrainParams,
    checkpoint: Path,
) -> tuple[list[dict], float]:
    """Train a head to the end, from the last finished epoch if there is one.

    Args:
        head: with drawn weights, on its device; in evaluation mode afterwards.
        begin: sets the weights from which training starts.
        source: makes the batches; its seed is that of the noise too.
        checkpoint: path of the file to keep finished epochs in.

    Returns:
        The curve, and the share of the time in which training waited for data.
    """
    device = next(head.parameters()).device
    adam = optimiser(head.train(), choices.lr)
    finished, rows = resume(checkpoint, head, adam, begin)
    groups, epochs = source.graphs.manifest["groups"], choices.epochs
    beta, schedule = beta_of(choices, head.clusters), schedule_of(choices, groups)
    bfloat16 = use_bfloat16(choices.precision, device)
    waited, began = [0.0], time.perf_counter()
    batches = load_batches(source, range(finished, epochs), device, waited)
    diverged = way_out("lower `train.lr`, or extract the features again")
    with bar() as progress, tensor_cores(), closing(batches), diverged:
        done = finished * groups
        task = progress.add_task("training", total=schedule.steps, unit="step", completed=done)
        for epoch in range(finished, epochs):
            noise = torch.Generator(device).manual_seed(noise_seed(source.seed, epoch))
            chunk = islice(batches, groups)
            first = epoch * groups
            for row in train_epoch(head, adam, chunk, beta, schedule, first, noise, bfloat16):
                rows.append({"step": len(rows), **row})
                progress.update(task, advance=1, description=f"training, loss {row['loss']:.4f}")
            state = {"head": head.state_dict(), "adam": adam.state_dict()}
            heads.save_checkpoint(checkpoint, {**state, "epoch": epoch + 1, "rows": rows})
    head.eval()
    return rows, waited[0] / (time.perf_counter() - began)


def resume(
    checkpoint: Path, head: Head, adam: torch.optim.Optimizer, begin: Callable[[], None]
) -> tuple[int, list[dict]]:
    """Restore a checkpoint, or begin; give the next epoch and the curve so far."""
    stored = heads.load_checkpoint(checkpoint)
    if stored is None:
        with alive("K-means for the start"):
            begin()
        return 0, []
    head.load_state_dict(stored["head"])
    adam.load_state_dict(stored["adam"])
    click.echo(f"resumed: {stored['epoch']} epochs were finished")
    return stored["epoch"], stored["rows"]


def head_shape(choices: HeadParams, clusters: int, start: Start, cache: Features) -> dict[str, Any]:
    """Give the arguments of `Head`."""
    channels = [cache.channels(level) for level in choices.levels]
    shape = choices.model_dump(exclude={"levels"})
    width = start.width(choices.width, sum(channels))
    return {**shape, "channels": channels, "width": width, "clusters": clusters}


def build_head(shape: dict[str, Any], seed: int) -> Head:
    """Build the head of this shape with the initial weights of the seed."""
    with way_out("change `head.width` (null = all channels) or `head.head_dim`"):
        head = Head(**shape)
    initialise(head, torch.Generator().manual_seed(seed))
    return head


def start_of(choices: TrainParams, clusters: int, seed: int, gpu: bool) -> Start:
    """Choose where training starts."""
    common = clusters, choices.start_scale, seed, gpu
    metric = choices.discriminant
    if choices.start == "discriminant":
        return DiscriminantStart(*common, metric.clusters, metric.runs)
    return KMeansStart(*common) if choices.start == "kmeans" else Start()


def head_input(sample: Sample, levels: list) -> np.ndarray:
    """Gather the head's input of sampled patches: float32 ``(n, channels)``, rows of length 1."""
    channels, cache = sum(map(sample.cache.channels, levels)), sample.cache
    rows = sample.rows(channels, lambda tile: cache.batch(levels, [tile]), "sampling for the start")
    return unit_rows(rows)


def beta_of(choices: TrainParams, clusters: int) -> float:
    """Give the weight of the objective's penalty."""
    return default_beta(clusters) if choices.beta is None else choices.beta


def schedule_of(choices: TrainParams, groups: int) -> Schedule:
    """Give the schedule of the whole training, a step for each group of a round in each epoch."""
    steps = choices.epochs * groups
    return Schedule(steps, choices.lr, choices.lr_end, choices.tau_start, choices.tau_end)


def noise_seed(seed: int, epoch: int) -> int:
    """Derive the seed of an epoch's noise."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def sample_size(clusters: int) -> int:
    """Count the training patches that K-means with so many centres is fitted to."""
    return max(clusters * KMEANS_SAMPLE, LEAST_SAMPLE)


@torch.inference_mode()
def fit_kmeans(
    sample: Sample, head: Head, levels: list, choices: KMeansParams, seed: int, gpu: bool
) -> dict[str, dict]:
    """Fit K-means to a sample of F (`kmeans`) and of the head's features (`ours_kmeans`).

    Beside them stand the mean features of the head's own clusters (`ours`), by which they are
    merged.
    """
    cache, device = sample.cache, next(head.parameters()).device

    @torch.inference_mode()  # threads do not inherit it
    def features_of(tile: int) -> np.ndarray:
        tokens = torch.from_numpy(cache.batch(levels, [tile])).to(device).float()
        return head.features(tokens, [len(tokens)]).half().cpu().numpy()

    features = sample.rows(head.width, features_of, "sampling the head's features")
    blocks = torch.from_numpy(features).split(BLOCK)
    ids = torch.cat([head.last(part.to(device)).argmax(1).cpu() for part in blocks])
    empty = head.last.weight.cpu().numpy()
    fitted = {"ours": {"centroids": kmeans.means(features, ids.numpy(), empty)}}
    fit = partial(kmeans.fit, spherical=choices.spherical, seed=seed, gpu=gpu)
    with alive(f"K-means of ours_kmeans, {head.clusters} clusters"):
        fitted["ours_kmeans"] = fit(features, head.clusters, whiten=None)._asdict()
    del features, blocks  # before the other sample is read: they are the peak of memory
    channels, tokens_of = cache.channels(choices.level), lambda i: cache.tokens(choices.level, i)
    plain = sample.rows(channels, tokens_of, "sampling for K-means")
    with alive(f"K-means of kmeans, {head.clusters} clusters"):
        fitted["kmeans"] = fit(plain, head.clusters, whiten=choices.whiten)._asdict()
    return fitted


def check_sizes(
    clusters: int, head: HeadParams, baseline: KMeansParams, start: Start, sample: Sample
) -> None:
    """Find more clusters than patches, or a level that does not fit, before all computing."""
    cache = sample.cache
    if clusters > (patches := sum(cache.sizes(sample.tiles))):
        raise InputError(
            f"clusters ({clusters}) must not exceed the number of training patches ({patches}): "
            "lower `clusters` or add training images"
        )
    channels = sum(map(cache.channels, head.levels))
    with way_out(WAY_OUT):
        start.check(head.width, channels, sum(map(len, sample.plan)))
    channels, sampled = cache.channels(baseline.level), sum(map(len, sample.plan))
    if words := kmeans_words(sampled, clusters, channels, runs=3):
        click.echo(words, err=True)
    if (baseline.whiten or 0) > channels:
        raise InputError(
            f"kmeans.whiten must be at most the {channels} channels of {baseline.level}, found "
            f"{baseline.whiten}: lower it, or set it to null"
        )


def describe(
    params: Params, shape: dict[str, Any], cache: Features, graphs: Graphs, device: torch.device
) -> dict:
    """Describe what the head is made from, and what `segment` and `predict` need to use it."""
    choices = {
        "head": {**shape, "levels": params.head.levels},
        "context": [*params.vit.context],
        "kmeans": params.kmeans.model_dump(),
        "train": params.train.model_dump(exclude={"labelled", "choose"}),
        "bfloat16": use_bfloat16(params.train.precision, device),
        "alpha": params.graph.alpha,
        "seed": params.seed,
        "graph": graphs.manifest["fingerprint"],
        "features": cache.fingerprint,
    }
    made_from = fingerprint("head", heads.FORMAT, choices)
    return {**choices, "backbone": cache.manifest, "fingerprint": made_from}


def command(
    params: str, features: str, context: str, graph: str,
    index: str, labels: str, out: str, curve: str,
) -> None:  # fmt: skip
    """Do what the command line asks for."""
    train(load(params), features, context, graph, index, labels, out, curve)


if __name__ == "__main__":
    program("train")
