"""The prepare stage: a folder of images -> a checked index."""

from __future__ import annotations

import click

from cache import labels, params
from cache.images import check_images
from cache.index import write_index
from stages import Stage


@click.command(cls=Stage)
@click.option("--params", "params_path", default="params.yaml", help="Choices.")
@click.option("--out", default="data/index.csv", help="Index of images to write.")
@click.option("--labels", "labels_out", default="data/labels.csv", help="Index of labels to write.")
def main(params_path: str, out: str, labels_out: str) -> None:
    """Check a folder of images and write its index.

    Reads every image below `datasets.<dataset>.root` and, where there are labels, checks them too
    (they are used by eval and report alone). Writes path, size, content hash and split of every
    image to data/index.csv, and the labels' to data/labels.csv. All bad files are named at once.
    """
    chosen = params.load(params_path)
    rows = check_images(chosen.data.root, chosen.splits)
    classes = labels.read_classes(chosen.data.root)
    found = labels.find_labels(chosen.data.root, rows, classes)
    write_index(out, rows)
    labels.write_labels(labels_out, classes, found)
    for split in dict.fromkeys(row.split for row in rows):
        images = {row.id for row in rows if row.split == split}
        labelled = sum(row.image in images for row in found)
        click.echo(f"{split}: {len(images)} images, {labelled} with labels")


if __name__ == "__main__":
    main()
