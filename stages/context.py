"""The context stage: cached levels -> the level `context`, whitened and averaged, as a cache."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from cache import feature_writer as store
from cache.features import FORMAT, Features, read_fit
from cache.store.artefact import fingerprint, publish, size, work_folder
from pipeline.device import choose_device
from pipeline.features import context
from pipeline.features.tiles import sample_plan
from stages import program
from stages.running.hardware import chosen_device
from stages.running.jobs import run
from stages.running.sample import gather
from stages.settings.params import Params, load
from stages.settings.sections import ContextParams

NAME = "context"  # of the level, and of the array that holds it
SAMPLE = 100_000  # training patches that the whitening is fitted to
SEED = 0  # of their choice


class Job(NamedTuple):
    """Everything that a worker needs to fill any shard, small enough to send."""

    folder: str
    done: str
    features: str
    levels: tuple[int | str, ...]
    shard_slots: int
    device: str


def make_context(params: Params, features: str, out: str) -> None:
    """Put every patch of a cache into context; write the level as a cache of its own.

    The cache holds no level where graph, head and baseline use none of that name.

    Args:
        features: path of the cache that `extract` wrote.
        out: folder to write. Interrupted, the same call goes on where it was.
    """
    cache = Features.open(features)
    weights = params.vit.context if NAME in params.used_levels else {}
    split, choices = params.train_split, params.context
    manifest = describe(cache, split, choices, weights)
    chosen_device(params.compute.device)
    with work_folder(out, manifest["fingerprint"]) as work:
        folder, done = work / "context.zarr", work / "done"
        chunk, slots, shards = cache.layout()
        shards = shards if weights else 0
        dtype = cache.manifest["params"]["dtype"]
        channels = manifest["channels"]
        todo = store.declare(folder, done, channels, dtype, cache.tiles, chunk, slots, shards)
        if weights and not store.fit_finished(folder):
            store.write_fit(folder, fit_context(cache, split, choices, weights)._asdict())
        job = Job(
            str(folder), str(done), features, tuple(weights), slots, params.compute.device
        )  # fmt: skip
        jobs = [(job, shard) for shard in todo]
        run(fill_shard, jobs, params.compute, work, "tokens in context")
        store.finish(folder, done, shards, manifest)
        publish(folder, out)
    click.echo(f"{out}: {len(weights)} levels in context, {size(out) / 1e9:.2f} GB")


def describe(
    cache: Features, split: str, choices: ContextParams, weights: Mapping[Any, float]
) -> dict[str, Any]:
    """Describe what the level is made from; without ``weights`` of levels there is none."""
    width = sum(min(choices.components, cache.channels(level)) for level in weights)
    facts = {
        "features": cache.manifest["fingerprint"],
        "split": split,
        "weights": {str(level): weight for level, weight in weights.items()},
        **(choices.model_dump() if weights else {}),
    }
    return {
        **facts,
        "levels": {NAME: NAME} if weights else {},
        "channels": {NAME: width} if weights else {},
        "splits": cache.manifest["splits"],
        "fingerprint": fingerprint("context", FORMAT, facts),
    }


def fit_context(
    cache: Features, split: str, choices: ContextParams, weights: Mapping[Any, float]
) -> context.Context:
    """Fit the whitening of each level to a sample of the training patches."""
    tiles = cache.training_tiles(split)
    plan = sample_plan(cache.sizes(tiles), SAMPLE, np.random.default_rng([SEED, 2]))
    title = "sampling for the context"
    points = [
        gather(tiles, plan, cache.channels(level), partial(cache.tokens, level), title)
        for level in weights
    ]
    weighed, how = list(weights.values()), (choices.temperature, choices.reach)
    return context.fit(points, choices.components, weighed, *how)


def fill_shard(job: Job, shard: int) -> None:
    """Compute and write one shard."""
    cache, fit = _opened(job)
    starts = cache.tiles["start"]
    first, last = np.searchsorted(starts, np.array([shard, shard + 1]) * job.shard_slots)
    values = np.full((job.shard_slots, fit.channels), np.nan, np.float16)
    for tile in range(first, last):
        row = cache.tiles[tile]
        tokens = [cache.tokens(level, tile) for level in job.levels]
        start = int(row["start"]) - shard * job.shard_slots
        grid = int(row["grid_h"]), int(row["grid_w"])
        rows = context.apply(fit, tokens, *grid, choose_device(job.device))
        values[start : start + len(rows)] = rows
    store.write_shard(Path(job.folder), Path(job.done), shard, {NAME: values})


@lru_cache(maxsize=1)
def _opened(job: Job) -> tuple[Features, context.Context]:
    """Open the cache and the fit, once in each process."""
    fit = read_fit(job.folder) or {}
    return Features.open(job.features), context.Context(**fit)


def command(params: str, features: str, out: str) -> None:
    """Do what the command line asks for."""
    make_context(load(params), features, out)


if __name__ == "__main__":
    program("context")
