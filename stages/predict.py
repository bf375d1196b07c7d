"""The predict command: a trained head on new images, without a feature cache or parameters."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from cache import heads, predictions
from cache.claims import claim
from cache.images import find_white, read_image, survey
from cache.photos import Photo, find_photos
from cache.segments import PREDICTORS
from cache.store.artefact import fingerprint
from cache.store.errors import InputError
from cache.walk import some
from eigenseg.naming import read_naming, segments_of
from eigenseg.segmenter import Result, Segmenter
from pipeline.drawing.naming import Naming
from pipeline.maps.crf import CRFS
from stages import Stage, way_out
from stages.label_maps import areas_of, write_label_map, write_legend
from stages.progress import track

# By name, for evaluation is out of reach here: it is next to the ground truth.
MATCHINGS = ("majority_iou", "majority_count", "hungarian")
SPLIT = "train"  # of a data set that is exported


class Choices(NamedTuple):
    """How label maps are made from scores: whose clusters, named how, refined how."""

    predictor: str = "ours"
    matching: str = MATCHINGS[0]
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
) -> None:
    """Write label maps and overlays of new images.

    Args:
        images: files, and folders with all below them.
        out: folder to write; further images may join those of the same origin.
        origin: JSON-able, what gives the label maps their meaning.
        named: the names are a person's: write areas, and legends below the overlays.
        export: folder of a data set to write: these images, their labels, classes.txt.

    Raises:
        InputError: some images have faults (the others are written), or nothing can be done.
    """
    naming, targets = segmenter.naming, Targets(out, export, named)
    photos, notes = find_photos(images, [p for paths in targets.owned.values() for p in paths])
    check_export(targets, naming)
    for folder, owned in targets.owned.items():
        predictions.start(folder, origin, owned)
    if naming.classes:
        write_legend(out, naming)
    if export:
        predictions.write_class_list(export, naming.classes)
    photos = claim(targets.labels, photos)
    white = settle(photos, segmenter.white, notes)
    faults = list(write_all(targets, photos, segmenter, white))
    written = f"{out}: {len(photos) - len(faults)} of {len(photos)} images"
    if faults:
        raise InputError(f"{written}; the others have faults:\n" + "\n".join(faults))
    by = f"{len(naming.classes)} names" if named else f"classes by {origin['matching']}"
    kind = by if naming.classes else "cluster ids"
    click.echo(f"{written}, {kind} of {segmenter.predictor}")


class Targets(NamedTuple):
    """The folder of label maps, perhaps one of a data set; whether a person gave the names."""

    out: str
    export: str | None
    named: bool

    @property
    def owned(self) -> dict[str, list[Path]]:
        """What is written below each folder."""
        folders = {self.out: predictions.outputs(self.out)}
        return folders | ({self.export: predictions.samples(self.export)} if self.export else {})

    @property
    def labels(self) -> dict[str, str]:
        """Where the labels lie below each folder."""
        return {self.out: "labels"} | ({self.export: f"labels/{SPLIT}"} if self.export else {})


def check_export(targets: Targets, naming: Naming) -> None:
    """Raise InputError where a data set is wanted that cannot be."""
    if targets.export and (not naming.classes or targets.export == targets.out):
        raise InputError(
            f"a data set needs classes (--names or --mapping) and a folder other than --out, found "
            f"{len(naming.classes)} classes and {targets.export}: correct --export."
        )


def mapped(path: str, manifest: dict[str, Any], choices: Choices) -> Naming | None:
    """Read the classes of clusters from a mapping; None for cluster ids.

    Raises:
        InputError: the mapping that was asked for is missing or belongs to another head. The
            default one may be so: that is said and cluster ids are written.
    """
    if path == "none":
        return None
    k = segments_of(manifest, choices.merge_to)
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
        click.echo(f"of several pages or frames the first is read: {names}", err=True)
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
    targets: Targets, photos: Sequence[Photo], segmenter: Segmenter, white: float | None
) -> Iterator[str]:
    """Write what is made of every photo; yield what is wrong with the bad ones.

    Args:
        white: of photos of more than 8 bits.
    """
    naming, areas = segmenter.naming, {}
    way_out = "Replace or remove the file, then run predict again."
    for photo in track(photos, "segmenting"):
        try:
            found = segmenter(read_image(photo.path, way_out, white=white))
            write_one(targets, photo, found, naming)
            areas[photo.name] = areas_of(found.classes, naming)
        except InputError as error:
            yield str(error)
        except ValueError as error:
            yield f"{photo.path}: {error}"
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # of all photos
                raise
            yield f"{photo.path}: its results cannot be written ({error})"
    if targets.named:
        predictions.write_areas(targets.out, naming.classes, areas)


def write_one(targets: Targets, photo: Photo, found: Result, naming: Naming) -> None:
    """Write the sample of a data set, if one is wanted, the label map and the overlay."""
    labels = found.classes
    if targets.export:
        sample = (SPLIT, photo.name, photo.path, found.image, labels, naming.png_colours)
        predictions.write_sample(targets.export, *sample)
    write_label_map(targets.out, photo.name, found.image, labels, naming, with_legend=targets.named)


@click.command(cls=Stage)
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, help="Folder to write.")
@click.option("--head", default="data/head", help="Folder of the trained head.")
@click.option("--mapping", default="results/mapping.json", help="Classes of clusters, or `none`.")
@click.option("--names", help="names.json of the atlas, in place of a mapping.")
@click.option("--export", help="Folder of a data set to write: images, labels, classes.txt.")
@click.option("--predictor", default="ours", type=click.Choice(PREDICTORS), help="Whose clusters.")
@click.option("--matching", default=MATCHINGS[0], type=click.Choice(MATCHINGS), help="Of classes.")
@click.option("--weights", help="The backbone's weights, if they have moved.")
@click.option("--device", default="auto", type=click.Choice(("auto", "cpu", "cuda")), help="Where.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    help="As `segment.temperature`; without it the logits are interpolated.",
)
@click.option("--crf", default="none", type=click.Choice(CRFS), help="As `segment.crf`.")
@click.option("--protocol", help="How photos are looked at; without it whole, as in training.")
@click.option("--merge-to", type=click.IntRange(min=2), help="As `segment.merge_to`.")
def main(
    images: tuple[str, ...], out: str, head: str, mapping: str, names: str | None,
    export: str | None, predictor: str, matching: str, weights: str | None, device: str,
    temperature: float | None, crf: str, protocol: str | None, merge_to: int | None,
) -> None:  # fmt: skip
    """Segment new IMAGES (files, and folders with all below them) with a trained head.

    Reads the images, data/head and, for the names of the classes, results/mapping.json or what
    --names gives. Writes labels/<name>.png with class indices (255 = none) or, without a mapping,
    cluster ids, overlays/<name>.jpg, classes.txt and legend.png to the folder --out; with --names
    also areas.csv, and legends below the overlays.
    """
    choices = Choices(predictor, matching, temperature, crf, merge_to, protocol)
    manifest = heads.load_head(head)[2]
    if names:
        k = segments_of(manifest, merge_to)
        naming: Naming | None = read_naming(names, manifest, k, predictor, matching)
    else:
        naming = mapped(mapping, manifest, choices)
    with way_out("choose another --device, --crf or --protocol"):
        segmenter = Segmenter(
            head, names=naming, weights=weights, device=device, **choices._asdict()
        )
    origin = {
        "head": manifest["fingerprint"],
        **choices._asdict(),
        "matching": matching if naming and not names else None,
        "classes": segmenter.naming.classes,
        "values": fingerprint(segmenter.naming.values.tolist()),
    }
    predict(images, out, segmenter, origin, named=names is not None, export=export)


if __name__ == "__main__":
    main()
