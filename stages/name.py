"""The name stage: label maps and names that a person gave to clusters -> semantic label maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from cache import predictions
from cache.index import ImageRow, read_index
from cache.names import (
    IGNORED,
    LEAST,
    NO_CLASS,
    PREDICTOR,
    UNNAMED,
    Names,
    read_any_names,
    read_names,
    write_names,
)
from cache.segments import Segments
from cache.store.artefact import fingerprint, publish, work_folder
from cache.store.errors import InputError
from pipeline.drawing.naming import Naming, class_naming
from pipeline.maps.atlas import shrink
from pipeline.maps.named import carry
from stages import program
from stages.running.progress import track
from stages.settings.params import Params, load
from stages.showing.label_maps import open_exports, write_label_map, write_legend
from stages.showing.planned import read_planned

COARSE = 48  # cells along the longer side of a photo's small map of names
UNSURE = 0.6  # of a cluster's pixels: below, a name that was carried over wants a look


def name_maps(
    params: Params, index: str, segments: str, out: str, formats: Sequence[str] = ()
) -> None:
    """Write the label maps of `ours` by name; without a file of names a folder that says so.

    Args:
        index, segments: paths of what `prepare` and `segment` wrote.
        out: folder to write.
        formats: of `exports.FORMATS`, further files for other tools.
    """
    path = params.segment.names
    with Segments(segments) as maps, work_folder(out, fingerprint("named", path)) as work:
        folder = work / "named"
        rows = maps.stored(read_index(index))
        names = names_of(path, maps, rows) if path else None
        classes = names.classes if names else []
        facts = {"head": maps.manifest["head"], "classes": classes}
        predictions.start(folder, facts, predictions.outputs(folder))
        if names:
            naming = class_naming(*names.naming)
            write_legend(folder, naming)
            small = write_maps(folder, rows, maps, naming, names.codes, formats)
            write_names(folder / "names.json", names._replace(photos=small))
        publish(folder, out)
    said = f"{len(rows)} images, {len(classes)} names" if path else "segment.names is null: no maps"
    click.echo(f"{Path(out)}: {said}")


def write_maps(
    folder: Path,
    rows: Sequence[ImageRow],
    maps: Segments,
    naming: Naming,
    codes: np.ndarray,
    formats: Sequence[str],
) -> dict[str, np.ndarray]:
    """Write what `name_maps` writes of every photo; small maps of codes by SHA-256."""
    writers, areas, small = open_exports(formats, folder, naming), {}, {}
    for row in track(rows, "naming"):
        ids, seconds = maps.read(PREDICTOR, row.id), maps.runner_up(row.id)[0]
        labels = naming.labels(ids, seconds, row.sha256)
        name = f"{row.split}/{row.stem}"
        areas[name] = write_label_map(folder, name, read_planned(maps, row), labels, naming)
        for writer in writers:
            writer.add(name, Path(row.path).suffix, labels)
        ignored = shrink(codes[ids] == IGNORED, *coarse(*ids.shape))
        values = shrink(labels, *ignored.shape).astype(np.int64)
        unnamed = np.where(ignored, IGNORED, UNNAMED)
        small[row.sha256] = np.where(values == NO_CLASS, unnamed, values)
    predictions.write_areas(folder, naming.classes, areas)
    for writer in writers:
        writer.close()
    return small


def coarse(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the small map of a photo's names."""
    ratio = min(1.0, COARSE / max(height, width))
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def names_of(path: str, maps: Segments, rows: Sequence[ImageRow]) -> Names:
    """The names in a file, carried over where they are of another head.

    Raises:
        InputError: as `read_any_names`, or the file shares no photo with the label maps.
    """
    head, k = maps.manifest["head"], maps.clusters[PREDICTOR]
    names = read_any_names(path)
    if names.head == head:
        return read_names(path, head, k)
    shared = [row for row in rows if row.sha256 in names.photos]
    if not shared:
        raise InputError(
            f"{path} must name the clusters of this head ({head}) or share photos with it, found "
            f"names for those of {names.head} in {len(names.photos)} other photos: open "
            "results/report/clusters.html, name the clusters and save the file again."
        )
    counts = np.zeros((k, len(names.classes) - LEAST))
    for row in shared:
        carry(names.photos[row.sha256], maps.read(PREDICTOR, row.id), counts, LEAST)
    covered = counts.sum(axis=1)
    sure = counts.max(axis=1) / np.maximum(covered, 1e-9)
    codes = np.where(covered > 0, counts.argmax(axis=1) + LEAST, UNNAMED)
    say_carried(path, names, len(shared), codes, sure, covered)
    corrections = [one._replace(cluster=None) for one in names.corrections]
    return names._replace(head=head, codes=codes, splits={}, corrections=corrections, photos={})


def say_carried(
    path: str, names: Names, photos: int, codes: np.ndarray, sure: np.ndarray, covered: np.ndarray
) -> None:
    """Say how many names were carried over, and how sure they are."""
    given = codes >= 0
    weight = covered * given
    mean = float((sure * weight).sum() / max(weight.sum(), 1e-9))
    worst = [i for i in np.argsort(sure, kind="stable").tolist() if given[i] and sure[i] < UNSURE]
    click.echo(
        f"{path} is of another head ({names.head}): {np.count_nonzero(given)} of {len(codes)} "
        f"clusters got names by the pixels of {photos} photos, which agree on {mean:.0%} of them; "
        f"{len(names.corrections)} corrections of regions stay."
    )
    if worst:
        said = ", ".join(f"{i} ({sure[i]:.0%})" for i in worst[:8])
        click.echo(f"The least sure ones, to check in the atlas: {said}.")


def command(params: str, index: str, segments: str, formats: tuple[str, ...], out: str) -> None:
    """Do what the command line asks for."""
    name_maps(load(params), index, segments, out, formats)


if __name__ == "__main__":
    program("name")
