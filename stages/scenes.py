"""The scenes stage: seeds -> a drawn data set."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import click

from cache import params
from cache.progress import track
from cache.scenes import Scene, write_scenes
from pipeline.colours import palette
from pipeline.scenes import CLASSES, numbered_scene
from stages import Stage

SPLITS = ("train", "val")


@click.command(cls=Stage)
@click.option("--params", "params_path", default="params.yaml", help="Choices.")
@click.option("--out", default="data/scenes", help="Folder of the data set to write.")
def main(params_path: str, out: str) -> None:
    """Draw streets and landscapes with exact labels.

    Reads params.yaml alone: how many images, and the seed. Writes images of 320 x 240 px, their
    labels and classes.txt to data/scenes, in place of scenes drawn before. An image depends on the
    seed, its split and its number alone, so that more images don't change the first ones.
    """
    chosen = params.load(params_path).scenes
    places = [(split, n) for split in SPLITS for n in range(getattr(chosen, split))]
    scenes = draw(chosen.seed, places, _cores())
    shown = track(scenes, "drawing scenes", len(places))
    write_scenes(out, CLASSES, palette(256), shown, chosen.model_dump())
    click.echo(f"{out}: {chosen.train} + {chosen.val} images, {len(CLASSES)} classes")


def draw(seed: int, places: list[tuple[str, int]], workers: int) -> Iterator[Scene]:
    """The scenes of these places, (split, number), in their order, drawn by so many processes."""
    jobs = [(seed, SPLITS.index(split), number) for split, number in places]
    if workers == 1:
        for place, job in zip(places, jobs, strict=True):
            yield Scene(*place, *numbered_scene(*job))
        return
    # The bar runs in a thread: to fork a process with threads can hang, so they start afresh.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        futures = [pool.submit(numbered_scene, *job) for job in jobs]
        try:
            for place, future in zip(places, futures, strict=True):
                yield Scene(*place, *future.result())
        finally:  # where writing fails, nothing more is drawn
            pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """How many cores this process may use, where the system says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    main()
