"""The scenes command: draws the procedural data set."""

from __future__ import annotations

from collections.abc import Iterator

import click

from cache.progress import track
from cache.scenes import Scene, write_scenes
from pipeline.colours import palette
from pipeline.scenes import CLASSES, draw_scene, scene_generator
from stages import Stage


@click.command(cls=Stage)
@click.option("--out", default="data/scenes", help="Folder of the data set to write.")
@click.option("--train", default=96, type=click.IntRange(min=1), help="Images of split train.")
@click.option("--val", default=32, type=click.IntRange(min=1), help="Images of split val.")
@click.option("--seed", default=0, type=click.IntRange(min=0), help="Another seed, other scenes.")
def main(out: str, train: int, val: int, seed: int) -> None:
    """Draw streets and landscapes with exact labels.

    Reads no file. Writes images of 320 x 240 px, their labels and classes.txt to data/scenes, in
    place of scenes drawn before. An image depends on the seed, its split and its number alone, so
    that more images don't change the first ones.
    """
    places = [(split, n) for split, count in (("train", train), ("val", val)) for n in range(count)]

    def scenes() -> Iterator[Scene]:
        for split, number in track(places, "drawing scenes"):
            generator = scene_generator(seed, ("train", "val").index(split), number)
            yield Scene(split, number, *draw_scene(generator))

    origin = {"seed": seed, "train": train, "val": val}
    write_scenes(out, CLASSES, palette(256), scenes(), origin)
    click.echo(f"{out}: {train} + {val} images, {len(CLASSES)} classes")


if __name__ == "__main__":
    main()
