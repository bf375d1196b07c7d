"""The prepare stage: a data set on disk -> a checked index."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from cache import labels as store
from cache.checked import CheckedFiles
from cache.images import check_image
from cache.index import ImageRow, write_index
from cache.layouts import find_layout
from cache.names import read_any_names
from cache.photos import check_images, lie_of
from cache.store.artefact import file_hash
from stages import program
from stages.running.progress import track
from stages.settings.params import Params, load


def prepare(params: Params, out: str, labels: str) -> None:
    """Check every image and label of the data sets in use, and write their indices.

    Files that are as they were in the last run are not read: ``.checked.csv`` beside the index
    tells of them.

    Args:
        out: path of the index of images to write.
        labels: path of the index of labels to write.
    """
    rows: list[ImageRow] = []
    labelled: list[store.LabelRow] = []
    classes: dict[str, list[str]] = {}
    with CheckedFiles(Path(out).with_name(".checked.csv")) as checked:
        for name in params.used:
            images, names, found = prepare_set(params, name, checked)
            if found:
                classes[name] = names
            labelled += [row._replace(image=len(rows) + row.image) for row in found]
            rows += [
                row._replace(id=len(rows) + row.id, split=params.split_text(name, row.split))
                for row in images
            ]
    file = params.train.names
    if file:
        read_any_names(file)  # a fault in it ends the run here, before hours are spent
    write_index(out, rows)
    store.write_labels(labels, classes, labelled, rows, file_hash(file) if file else "")
    for split in dict.fromkeys(row.split for row in rows):
        ids = {row.id for row in rows if row.split == split}
        count = sum(row.image in ids for row in labelled)
        click.echo(f"{split}: {len(ids)} images, {count} with labels")


def prepare_set(
    params: Params, name: str, checked: CheckedFiles
) -> tuple[list[ImageRow], list[str], list[store.LabelRow]]:
    """The images of one data set, numbered from 0, its classes, and the labels of its images.

    Where it is trained on alone, without labels, its labels are not looked at.
    """
    data, splits = params.datasets[name], params.used[name]
    layout = lie_of(Path(data.root), splits, find_layout(data.format, data.classes))
    subset = {data.train: data.subset} if data.subset else {}
    shown = partial(track, description=f"checking images of {name}")
    look = checked.once(check_image)
    rows, notes = check_images(data.root, splits, shown, layout, subset, look, data.white)
    classes, found = list[str](), list[store.LabelRow]()
    taught = name == params.trained and params.train.labelled is not None
    if name in params.evaluated or taught:
        classes = store.classes_of(data.root, layout, data.classes)
        shown = partial(track, description=f"checking labels of {name}", unit="label")
        check, values = checked.once(store.check_label), data.values or {}
        found, more = store.find_labels(
            data.root, rows, classes, shown, layout, check, values, data.eval
        )
        notes += more
    for note in notes:
        click.echo(f"{name}: {note}", err=True)
    return rows, classes, found


def command(params: str, out: str, labels: str) -> None:
    """Do what the command line asks for."""
    prepare(load(params), out, labels)


if __name__ == "__main__":
    program("prepare")
