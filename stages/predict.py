"""The predict command: a trained head on new images, without a feature cache or parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from cache import exports, heads, predictions
from cache import results as store
from cache.backbone import FOLDER, facts, load_backbone, weights_hash
from cache.images import Photo, cut_tile, find_photos, read_image, resize
from cache.names import Names
from cache.segments import PREDICTORS
from cache.store.artefact import file_hash
from cache.store.errors import InputError
from pipeline.device import choose_device, hardware_bfloat16
from pipeline.features import context
from pipeline.features.tiles import Tile, plan_tiles
from pipeline.features.vit import Backbone, Levels, half_tokens
from pipeline.maps.crf import CRFS, check_crf, label_map
from pipeline.maps.predictors import (
    Inputs,
    Predictors,
    Window,
    restore,
    runner_up,
    score_maps,
    window,
)
from stages import Stage, way_out
from stages.naming import (
    Naming,
    check_export,
    check_names,
    class_names,
    cluster_names,
    covers_nearly_all,
    find_mapping,
    find_names,
    given_names,
    open_exports,
    png_colours,
    segments_of,
    warn_of_merging,
    write_map,
)
from stages.progress import track

# By name, for evaluation is out of reach here: it is next to the ground truth.
# The first is the default: the likeliest class of a pixel. Papers print scores by majority_iou,
# which gives small classes more than their share; `eval` has it first.
MATCHINGS = ("majority_count", "majority_iou", "hungarian")
SPLIT = "train"  # of a data set that is exported
CONTEXT = "context"  # the level that is made of others
TILING = ("short_side", "window", "stride")


class Model(NamedTuple):
    """All that turns a photo into scores.

    Attributes:
        extracted: manifest of the feature cache.
        fit: what puts tokens into context, from the levels ``around``; None where nothing does.
    """

    extracted: dict[str, Any]
    backbone: Backbone
    levels: Levels
    fit: context.Context | None
    around: list[int | str]
    inputs: Inputs
    predictors: Predictors
    device: torch.device


class Choices(NamedTuple):
    """How label maps are made from scores: whose clusters, named how, refined how."""

    predictor: str = "ours"
    matching: str = MATCHINGS[0]
    temperature: float | None = None  # of a softmax before the interpolation; None: the logits
    crf: str = "none"  # one of `CRFS`
    merge_to: int | None = None  # segments that the clusters are merged to


def predict(
    images: Sequence[str],
    out: str,
    head: str,
    mapping: store.ClassMapping | None,
    choices: Choices,
    *,
    names: Names | None = None,
    export: str | None = None,
    formats: Sequence[str] = (),
    weights: str | None = None,
    device: str = "auto",
) -> None:
    """Write label maps and overlays of new images.

    Args:
        images: files, and folders with all below them.
        out: folder to write; further images may join those of the same choices.
        head: folder of the trained head.
        mapping: what the clusters are called; None for cluster ids.
        names: what a person called them, in place of a mapping.
        export: folder of a data set to write: these images, their labels, classes.txt.
        formats: of `exports.FORMATS`, further files for other tools in ``out``.
        weights: of the backbone, where they have moved.
        device: auto, cpu or cuda.

    Raises:
        InputError: some images have faults (the others are written), or nothing can be done.
    """
    with way_out("choose another --device"):
        hardware = choose_device(device)
    check_crf(choices.crf, choices.temperature)
    loaded = heads.load_head(head)
    targets = Targets(out, export)
    photos = find_photos(images, [path for paths in targets.owned.values() for path in paths])
    k = segments_of(loaded[2], choices.merge_to)
    naming = naming_of(k, mapping, names, choices)
    check_names(naming, k)
    check_export(out, export, naming)
    writers = open_exports(formats, out, naming)
    origin = {
        "head": loaded[2]["fingerprint"],
        **choices._asdict(),
        "matching": None if mapping is None else choices.matching,
        "classes": naming.classes,
        "values": naming.mark,
    }
    model = load_model(loaded, weights, hardware, choices.merge_to)
    for folder, owned in targets.owned.items():
        predictions.start(folder, origin, owned)
    if naming.classes:
        predictions.write_classes(out, naming.classes, naming.colours)
    if export:
        predictions.write_class_list(export, naming.classes)
    faults = list(write_all(targets, writers, photos, model, naming, choices))
    written = f"{out}: {len(photos) - len(faults)} of {len(photos)} images"
    if faults:
        raise InputError(f"{written}; the others have faults:\n" + "\n".join(faults))
    by = f"{len(names.classes)} names" if names else f"classes by {choices.matching}"
    click.echo(f"{written}, {by if naming.classes else 'cluster ids'} of {choices.predictor}")


class Targets(NamedTuple):
    """The folder of label maps, and perhaps one of a data set."""

    out: str
    export: str | None

    @property
    def owned(self) -> dict[str, list[Path]]:
        """What is written below each folder."""
        folders = {self.out: predictions.outputs(self.out)}
        return folders | ({self.export: predictions.samples(self.export)} if self.export else {})


def naming_of(
    k: int, mapping: store.ClassMapping | None, names: Names | None, choices: Choices
) -> Naming:
    """What the label maps will hold."""
    if names is not None or mapping is None:
        return given_names(names) if names is not None else cluster_names(k)
    return class_names(mapping.clusters[choices.predictor][choices.matching], mapping.classes)


def load_model(
    head: tuple[dict[str, Any], dict[str, Any], dict[str, Any]],
    weights: str | None,
    device: torch.device,
    merge_to: int | None = None,
) -> Model:
    """Restore the predictors and open the backbone that their features came from.

    Args:
        head: what `heads.load_head` gives.
        weights: the backbone's weight file; None = as when the features were extracted.
    """
    state, centres, manifest = head
    inputs, predictors = restore(manifest, state, centres, device, merge_to)
    extracted = manifest["backbone"]
    # Emulated, bfloat16 is many times slower than the float32 that it stands for.
    bfloat16 = extracted["bfloat16"] and hardware_bfloat16(device)
    levels = Levels.of(extracted["levels"], extracted["normed"], bfloat16)
    backbone = open_backbone(extracted, weights)
    fit = context.Context(**centres["context"]) if "context" in centres else None
    return Model(extracted, backbone, levels, fit, manifest["context"], inputs, predictors, device)


def open_backbone(extracted: dict[str, Any], weights: str | None) -> Backbone:
    """The ViT whose features the head was trained on.

    Args:
        weights: its file or, of a model in a folder (``local-dir:FOLDER``), its folder; None = as
            when the features were extracted.

    Raises:
        InputError: it cannot be loaded, or it has other weights.
    """
    model, path = extracted["model"], extracted.get("weights")
    if weights and path is None and model.startswith(FOLDER):
        model = FOLDER + weights
    else:
        path = weights or path
    try:
        loaded = load_backbone(model, path).cpu()
    except InputError as error:
        raise InputError(
            f"{error} For `predict`, say with --weights where the backbone's weights are now."
        ) from error
    digest, expected = weights_hash(loaded), extracted["weights_sha256"]
    if digest != expected:
        raise InputError(
            f"the backbone must have the weights that the head's features were extracted with "
            f"(SHA-256 {expected[:16]}), found {digest[:16]} in {path or model}: name the file "
            "that has them with --weights, or run the pipeline again with these."
        )
    backbone = Backbone(loaded, **facts(loaded))
    return backbone._replace(**{name: extracted[name] for name in ("patch", "mean", "std")})


def write_all(
    targets: Targets,
    writers: Sequence[exports.Writer],
    photos: Sequence[Photo],
    model: Model,
    naming: Naming,
    choices: Choices,
) -> Iterator[str]:
    """Write the label map and the overlay of every photo; what is wrong with the bad ones."""
    way_out = "Replace or remove the file, then run predict again."
    areas, flat = {}, []
    for photo in track(photos, "segmenting"):
        try:
            image = read_image(photo.path, way_out)
            clusters, seconds = segment_image(model, image, choices)
        except InputError as error:
            yield str(error)
            continue
        except ValueError as error:
            yield f"{photo.path}: {error}"
            continue
        flat += [photo.name] * covers_nearly_all(clusters)
        labels = naming.labels(clusters, seconds, partial(file_hash, photo.path))
        areas[photo.name] = write_map(targets.out, photo.name, image, labels, naming)
        for writer in writers:
            writer.add(photo.name, photo.path.suffix, labels)
        if targets.export:
            sample = (SPLIT, photo.name, photo.path, labels, png_colours(naming))
            predictions.write_sample(targets.export, *sample)
    if naming.classes:
        predictions.write_areas(targets.out, naming.classes, areas)
    for writer in writers:
        writer.close()
    if choices.merge_to and flat:
        warn_of_merging(flat, len(photos), choices.merge_to)


def segment_image(
    model: Model, image: np.ndarray, choices: Choices
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster ids of one image, as extract and segment would find them.

    Args:
        image: uint8 ``(H, W, 3)``.

    Returns:
        uint16 ``(H, W)``; and those that come second, int64 ``(h, w)`` at the patch grid.

    Raises:
        ValueError: features that are not finite.
    """
    height, width = image.shape[:2]
    patch, planned = model.backbone.patch, model.extracted["params"]
    tiling = {name: planned["train"][name] for name in TILING}
    tiles = plan_tiles(height, width, patch=patch, max_patches=planned["max_patches"], **tiling)
    full_h, full_w = tiles[0].resized_h, tiles[0].resized_w
    windows = list(read_windows(model, resize(image, full_h, full_w), tiles))
    grid = full_h // patch, full_w // patch
    maps = score_maps(
        model.predictors, windows, *grid, temperature=choices.temperature, eigenfunctions=1
    )
    scores, refiner = getattr(maps, choices.predictor), CRFS[choices.crf]
    logits = choices.predictor == "ours"
    ids = label_map(scores, height, width, image, refiner, logits=logits)
    return ids, runner_up(scores)[0]


def read_windows(model: Model, resized: np.ndarray, tiles: Sequence[Tile]) -> Iterator[Window]:
    """The tokens of an image's tiles, which are all of one shape; ``resized`` is uint8 RGB."""
    patch, size = model.backbone.patch, model.extracted["params"]["batch"]
    for batch in (tiles[i : i + size] for i in range(0, len(tiles), size)):
        cuts = [((t.top, t.left, t.height, t.width), t.flip) for t in batch]
        pixels = np.stack([cut_tile(resized, *cut) for cut in cuts])
        arrays = half_tokens(
            model.backbone, torch.from_numpy(pixels).to(model.device), model.levels
        )
        if not all(np.isfinite(values).all() for values in arrays.values()):
            raise ValueError(
                "its features are NaN or beyond float16, in which the head knows them. Leave the "
                "image out, or let the block pass the final norm (`extract.final_norm`) and train "
                "again."
            )
        for i, tile in enumerate(batch):
            grid = (tile.height // patch, tile.width // patch)
            yield window(
                levels_of(model, {name: values[i] for name, values in arrays.items()}, grid),
                model.inputs,
                corner=(tile.top // patch, tile.left // patch),
                grid=grid,
                flip=tile.flip,
                device=model.device,
            )


def levels_of(
    model: Model, arrays: dict[str, np.ndarray], grid: tuple[int, int]
) -> dict[int | str, np.ndarray]:
    """The levels that the predictors look at, of one tile: float16 ``(patches, C)`` each.

    Args:
        arrays: tokens of the tile by array of the feature cache.
        grid: rows and columns of the tile, in patches.
    """
    names = model.extracted["levels"]
    wanted = {*model.inputs.head, model.inputs.kmeans}
    levels = {level: arrays[names[str(level)]] for level in wanted - {CONTEXT}}
    if CONTEXT in wanted and model.fit is not None:
        around = [arrays[names[str(level)]] for level in model.around]
        levels[CONTEXT] = context.apply(model.fit, around, *grid)
    return levels


@click.command(cls=Stage)
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, help="Folder to write.")
@click.option("--head", default="data/head", help="Folder of the trained head.")
@click.option("--mapping", default="results/mapping.json", help="Classes of clusters, or `none`.")
@click.option("--names", help="names.json of the atlas, in place of a mapping.")
@click.option("--export", help="Folder of a data set to write: images, labels, classes.txt.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(tuple(exports.FORMATS)),
    help="Further files in --out for other tools; may be given twice.",
)
@click.option("--predictor", default="ours", type=click.Choice(PREDICTORS), help="Whose clusters.")
@click.option(
    "--matching",
    default=MATCHINGS[0],
    type=click.Choice(MATCHINGS),
    help="How clusters took classes: the likeliest of a pixel, or as papers print scores "
    "(majority_iou, which eval shows first).",
)
@click.option("--weights", help="The backbone's weights, if they have moved.")
@click.option("--device", default="auto", type=click.Choice(("auto", "cpu", "cuda")), help="Where.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    help="As `segment.temperature`; without it the logits are interpolated.",
)
@click.option("--crf", default="none", type=click.Choice(CRFS), help="As `segment.crf`.")
@click.option("--merge-to", type=click.IntRange(min=2), help="As `segment.merge_to`.")
def main(
    images: tuple[str, ...], out: str, head: str, mapping: str, names: str | None,
    export: str | None, formats: tuple[str, ...], predictor: str, matching: str,
    weights: str | None, device: str, temperature: float | None, crf: str,
    merge_to: int | None,
) -> None:  # fmt: skip
    """Segment new IMAGES (files, and folders with all below them) with a trained head.

    Reads the images, data/head and, for the names of the classes, results/mapping.json or what
    --names gives. Writes labels/<name>.png with class indices (255 = none) or, without a mapping,
    cluster ids, overlays/<name>.jpg, classes.txt, legend.png and areas.csv (pixels of each class in
    each photo) to the folder --out; with --format coco also coco/instances.json and panoptic.json,
    with --format label_studio predictions for Label Studio.
    """
    manifest = heads.load_head(head)[2]
    k = segments_of(manifest, merge_to)
    given = find_names(names, manifest, predictor, k) if names else None
    found = None if given else find_mapping(mapping, manifest["fingerprint"])
    choices = Choices(predictor, matching, temperature, crf, merge_to)
    predict(
        images, out, head, found, choices, names=given, export=export, formats=formats,
        weights=weights, device=device,
    )  # fmt: skip


if __name__ == "__main__":
    main()
