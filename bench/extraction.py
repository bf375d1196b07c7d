"""Extraction (decoding, ViT, writing) against the bare forward pass of timm's model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from bench.project import make_project, random_backbone
from bench.timing import Timing, machine, ratios, show, side_by_side
from cache import feature_writer, features
from cache.index import ImageRow, write_index
from cache.photos import check_images
from pipeline.device import choose_device
from pipeline.features.vit import Backbone, tokens
from stages import extract
from stages.settings.params import load


class Run(NamedTuple):
    """One extraction, ready to go, and its parts' input."""

    job: extract.Job
    shards: list[int]
    backbone: Backbone
    rows: list[ImageRow]
    batches: list[extract.Batch]


@click.command()
@click.option("--model", default="vit_small_patch14_dinov2.lvd142m", show_default=True)
@click.option("--weights", help="Checkpoint file; random weights without it.")
@click.option("--images", help="Folder of photos; drawn ones of 640 x 480 without it.")
@click.option("--count", default=48, show_default=True, help="Photos to draw.")
@click.option("--short-side", default=364, show_default=True, help="px.")
@click.option("--batch", default=8, show_default=True, help="Tiles in a forward pass.")
@click.option("--dtype", default="float16", type=click.Choice(("float16", "int8")))
@click.option("--precision", default="auto", type=click.Choice(("auto", "float32", "bfloat16")))
@click.option("--device", default="auto", type=click.Choice(("auto", "cpu", "cuda")))
@click.option("--repeats", default=5, show_default=True, help="Timed runs of each case.")
def main(
    model: str, weights: str | None, images: str | None, count: int, short_side: int, device: str,
    repeats: int, **choices: Any,
) -> None:  # fmt: skip
    """Time the extraction of photos and the model alone on batches of the same sizes.

    Then the parts of the extraction, each alone: decoding and resizing in one thread, tokens of the
    levels, the same with their way to float16 in the host's memory, writing of the shards.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        settings = [
            *random_backbone(root, model, weights),
            f"compute.device={device}",
            f"extract.train.short_side={short_side}",
            *(f"extract.{key}={value}" for key, value in choices.items()),
        ]
        make_project(root, 0 if images else count, 0, 480, 640, settings)
        rows, _ = check_images(images or root / "photos", ("all" if images else "train",))
        run = _prepare(root, rows)
        seconds = side_by_side(_cases(run), repeats)
        photos = sum(len(batch.tiles) for batch in run.batches)
        table = [
            _row(name, taken, seconds["bare forward"], photos) for name, taken in seconds.items()
        ]
        facts = {"model": model, "short_side": short_side, "tiles": photos}
        facts |= {"bfloat16": run.job.levels.bfloat16, **choices}
        show("extraction", {**machine(choose_device(device)), **facts}, table)


def _prepare(root: Path, rows: list[ImageRow]) -> Run:
    """Write the index, load the model, create the cache."""
    index = str(root / "index.csv")
    write_index(index, rows)
    params = load(root / "params.yaml")
    backbone = extract.open_backbone(params.vit.model, params.vit.weights)
    manifest = extract.describe(params, rows, backbone)
    job, shards, _ = extract.declare(params, manifest, rows, index, root)
    table = features.read_tiles(Path(job.folder))
    return Run(job, shards, backbone, rows, list(extract.plan_batches(table, shards, job)))


def _cases(run: Run) -> dict[str, Callable[[], None]]:
    """Collect what is timed, by name; each case does all the images."""
    job, backbone, levels = run.job, run.backbone, run.job.levels
    device = choose_device(job.device)
    model = backbone.model.to(device)
    autocast = torch.bfloat16 if levels.bfloat16 else None
    shapes = [(len(tiles), 3, *tiles[["height", "width"]][0].item()) for _, tiles in run.batches]
    drawn = {shape: torch.rand(shape, device=device) for shape in set(shapes)}
    arrays = {
        name: np.zeros((job.shard_slots, values.shape[-1]), np.float16)
        for name, values in extract.compute(backbone, drawn[shapes[0]], job).items()
    }

    write = partial(feature_writer.write_shard, Path(job.folder), Path(job.done), arrays=arrays)
    bare = torch.autocast(device.type, autocast, enabled=autocast is not None)(model)
    forward = partial(
        tokens, backbone, blocks=levels.blocks, normed=levels.normed, keys=levels.keys,
        autocast=autocast,
    )  # fmt: skip
    compute = partial(extract.compute, backbone, job=job)
    inputs = [drawn[shape] for shape in shapes]
    return {
        "bare forward": partial(_each, torch.inference_mode()(bare), inputs),
        "extraction": lambda: _each(int, extract.fill_shards(job, run.shards)),
        "part: decode, resize (1 thread)": partial(
            _each, partial(extract.read_pixels, run.rows, run.job), run.batches
        ),
        "part: tokens of the levels": partial(_each, forward, inputs),
        "part: tokens to float16 in host memory": partial(_each, compute, inputs),
        "part: write": partial(_each, write, run.shards),
    }


def _each(function: Callable[[Any], Any], items: Iterable[Any]) -> None:
    for item in items:
        function(item)


def _row(case: str, seconds: list[float], bare: list[float], photos: int) -> dict[str, Any]:
    rates = [photos / second for second in seconds]
    return {
        "case": case,
        "images/s": Timing.of(rates),
        "ms/image": 1e3 * Timing.of(seconds).median / photos,
        "rate / bare": ratios(bare, seconds),
    }


if __name__ == "__main__":
    main()
