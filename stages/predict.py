"""The predict command: a trained head on new images, without a feature cache or parameters."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from click.core import ParameterSource

from cache import exports, heads, predictions
from cache.claims import claim
from cache.images import find_white, read_image, survey
from cache.photos import Photo, find_photos
from cache.segments import SEMI_SUPERVISED
from cache.store.artefact import file_hash
from cache.store.errors import InputError
from cache.walk import some
from eigenseg.naming import choose_predictor, read_naming, segments_of
from eigenseg.segmenter import Result, Segmenter
from pipeline.drawing.naming import Naming
from stages import program, way_out
from stages.running.progress import track
from stages.showing.label_maps import (
    check_export,
    covers_nearly_all,
    naming_fingerprint,
    open_exports,
    warn_of_merging,
    write_label_map,
    write_legend,
)

SPLIT = "train"  # of a data set that is exported


class Choices(NamedTuple):
    """Choices from scores to label maps: whose clusters, their names, their refinement."""

    predictor: str
    matching: str = "majority_count"
    temperature: float | None = None  # of a softmax before the interpolation; None: the logits
    crf: str = "none"  # one of `CRFS`
    merge_to: int | None = None  # segments that the clusters are merged to
    protocol: str | None = None  # how photos are looked at; None: whole


def predict(
    images: Sequence[str],
    out: str,
    segmenter: Segmenter,
    origin: Mapping[str, Any],
    *,
    named: bool = False,
    export: str | None = None,
    formats: Sequence[str] = (),
) -> None:
    """Write label maps and overlays of new images.

    Args:
        images: files, and folders with all below them.
        out: folder to write; further images may join those of the same origin.
        origin: JSON-able, what gives the label maps their meaning.
        named: the names are a person's.
        export: folder of a data set to write: these images, their labels, classes.txt.
        formats: of `exports.FORMATS`, further files for other tools in ``out``.

    Raises:
        InputError: some images have faults (the others are written), or nothing can be done.
    """
    naming, targets = segmenter.naming, Targets(out, export)
    photos, notes = find_photos(images, [p for paths in targets.owned.values() for p in paths])
    check_export(out, export, naming)
    writers = open_exports(formats, out, naming)
    for folder, owned in targets.owned.items():
        predictions.start(folder, origin, owned)
    if naming.classes:
        write_legend(out, naming)
    if export:
        predictions.write_class_list(export, naming.classes)
    photos = claim(targets.labels, photos)
    white = settle(photos, segmenter.white, notes)
    faults = list(write_all(targets, writers, photos, segmenter, white, origin["merge_to"]))
    written = f"{out}: {len(photos) - len(faults)} of {len(photos)} images"
    if faults:
        raise InputError(f"{written}; the others have faults:\n" + "\n".join(faults))
    by = f"{len(naming.classes)} names" if named else "classes"
    by += f" by {origin['matching']}" * bool(origin["matching"])
    kind = by if naming.classes else "cluster ids"
    click.echo(f"{written}, {kind} of {segmenter.predictor}")


class Targets(NamedTuple):
    """The folder of label maps, and perhaps one of a data set."""

    out: str
    export: str | None

    @property
    def owned(self) -> dict[str, list[Path]]:
        """List what is written below each folder."""
        folders = {self.out: predictions.outputs(self.out)}
        return folders | ({self.export: predictions.samples(self.export)} if self.export else {})

    @property
    def labels(self) -> dict[str, str]:
        """Return the place of the labels below each folder."""
        return {self.out: "labels"} | ({self.export: f"labels/{SPLIT}"} if self.export else {})


def mapped(path: str, manifest: dict[str, Any], choices: Choices) -> Naming | None:
    """Read the classes of clusters from a mapping; None for cluster ids, or without clusters.

    Raises:
        InputError: the mapping that was asked for is missing or belongs to another head. The
            default one may be so: that is said and cluster ids are written.
    """
    if path == "none" or choices.predictor == SEMI_SUPERVISED:
        return None
    k = segments_of(manifest, choices.merge_to, choices.predictor)
    try:
        return read_naming(path, manifest, k, choices.predictor, choices.matching)
    except InputError as error:
        given = click.get_current_context().get_parameter_source("mapping")
        if given is not ParameterSource.DEFAULT:
            raise InputError(f"{error} `--mapping none` writes cluster ids.") from error
        click.echo(f"{error} Cluster ids are written instead of classes.", err=True)
        return None


def settle(photos: Sequence[Photo], white: float | None, notes: Sequence[str]) -> float | None:
    """Say what was passed over, and give the white of photos of more than 8 bits.

    Args:
        white: that of the photos that the head was trained on; None where these had 8 bits.
    """
    deep, several = survey(photo.path for photo in photos)
    for note in notes:
        click.echo(note, err=True)
    if several:
        names = some([str(path) for path in several])
        click.echo(f"only the first page or frame is read of {names}", err=True)
    if not deep:
        return white
    found = white or find_white(deep)
    source = "as in training" if white else "from the greatest value in them"
    click.echo(
        f"{len(deep)} photos of more than 8 bits are read with white = {found:g}, {source}",
        err=True,
    )
    return found


def write_all(
    targets: Targets,
    writers: Sequence[exports.Writer],
    photos: Sequence[Photo],
    segmenter: Segmenter,
    white: float | None,
    merge_to: int | None,
) -> Iterator[str]:
    """Write what is made of every photo; yield what is wrong with the bad ones.

    Args:
        white: of photos of more than 8 bits.
        merge_to: number of segments that clusters are merged to, if any.
    """
    naming, areas, flat = segmenter.naming, {}, []
    way_out = "Replace or remove the file, then run predict again."
    for photo in track(photos, "segmenting"):
        try:
            pixels = read_image(photo.path, way_out, white=white)
            found = segmenter(pixels, file_hash(photo.path) if naming.corrections else None)
            areas[photo.name] = write_one(targets, writers, photo, found, naming)
            flat += [photo.name] * covers_nearly_all(found.ids)
        except InputError as error:
            yield str(error)
        except ValueError as error:
            yield f"{photo.path}: {error}"
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # of all photos
                raise
            yield f"{photo.path}: its results cannot be written ({error})"
    if naming.classes:
        predictions.write_areas(targets.out, naming.classes, areas)
    for writer in writers:
        writer.close()
    if merge_to and flat:
        warn_of_merging(flat, len(photos), merge_to)


def write_one(
    targets: Targets,
    writers: Sequence[exports.Writer],
    photo: Photo,
    found: Result,
    naming: Naming,
) -> np.ndarray:
    """Write what is made of one photo; its areas by class, as `write_label_map` gives them."""
    labels = found.classes
    if targets.export:
        sample = (SPLIT, photo.name, photo.path, found.image, labels, naming.png_colours)
        predictions.write_sample(targets.export, *sample)
    areas = write_label_map(targets.out, photo.name, found.image, labels, naming)
    for writer in writers:
        writer.add(photo.name, photo.path.suffix, labels)
    return areas


def command(
    images: tuple[str, ...], out: str, head: str, mapping: str, names: str | None,
    export: str | None, formats: tuple[str, ...], predictor: str | None, matching: str,
    weights: str | None, device: str,
    temperature: float | None, crf: str, protocol: str | None, merge_to: int | None,
) -> None:  # fmt: skip
    """Do what the command line asks for."""
    manifest = heads.load_head(head)[2]
    whose = choose_predictor(manifest, predictor, named=names is not None)
    choices = Choices(whose, matching, temperature, crf, merge_to, protocol)
    if names:
        k = segments_of(manifest, merge_to, whose)
        naming: Naming | None = read_naming(names, manifest, k, whose, matching)
    else:
        naming = mapped(mapping, manifest, choices)
    with way_out("choose another --device, --crf or --protocol"):
        segmenter = Segmenter(
            head, names=naming, weights=weights, device=device, **choices._asdict()
        )
    origin = {
        "head": manifest["fingerprint"],
        "trained": manifest["sha256"],
        **choices._asdict(),
        "matching": matching if naming and not names else None,
        "classes": segmenter.naming.classes,
        "values": naming_fingerprint(segmenter.naming),
    }
    predict(images, out, segmenter, origin, named=names is not None, export=export, formats=formats)


if __name__ == "__main__":
    program("predict")
