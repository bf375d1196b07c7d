"""The prepare stage: a data set on disk -> a checked index."""

from __future__ import annotations

from functools import partial

import click

from cache import labels as store
from cache.images import check_images
from cache.index import write_index
from cache.layouts import find_layout
from stages import Stage
from stages.params import Params, load
from stages.progress import track


def prepare(params: Params, out: str, labels: str) -> None:
    """Check every image and label of the data set, and write their indices.

    Args:
        out: path of the index of images to write.
        labels: path of the index of labels to write.
    """
    data = params.data
    root, layout = data.root, find_layout(data.format, data.classes)
    subset = {data.train: data.subset} if data.subset else {}
    shown = partial(track, description="checking images")
    rows = check_images(root, params.splits, shown, layout, subset)
    classes = store.classes_of(root, layout, data.classes)
    shown = partial(track, description="checking labels")
    labelled = store.find_labels(root, rows, classes, shown, layout)
    write_index(out, rows)
    store.write_labels(labels, classes, labelled, rows)
    for split in dict.fromkeys(row.split for row in rows):
        images = {row.id for row in rows if row.split == split}
        count = sum(row.image in images for row in labelled)
        click.echo(f"{split}: {len(images)} images, {count} with labels")


@click.command(cls=Stage)
@click.option("--params", default="params.yaml", help="Choices.")
@click.option("--out", default="data/index.csv", help="Index of images to write.")
@click.option("--labels", default="data/labels.csv", help="Index of labels to write.")
def main(params: str, out: str, labels: str) -> None:
    """Check a data set's images and write their index.

    Reads every image of both splits of `datasets.<dataset>` and, where there are labels, checks
    them too (they are used by eval and report alone). Writes path, size, content hash and split of
    every image to data/index.csv, and the labels' to data/labels.csv. All bad files are named at
    once.
    """
    prepare(load(params), out, labels)


if __name__ == "__main__":
    main()
