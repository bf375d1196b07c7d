"""The segment stage: cached features, head and K-means -> label maps at the images' resolution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from functools import lru_cache, partial
from typing import NamedTuple

import click
import torch

from cache import heads
from cache.features import Features
from cache.images import read_row
from cache.index import ImageRow, read_index
from cache.segments import CRF, FORMAT, ImageMaps, write_maps
from cache.store import parts
from cache.store.artefact import fingerprint, size, work_folder
from cache.store.errors import InputError
from pipeline.device import choose_device
from pipeline.geometry import Geometry, Plan, grid, plan
from pipeline.maps.crf import CRFS, POINTS, ours
from pipeline.maps.upsampling import at_grid
from pipeline.segmenter import Scores, Segmenter, runner_up
from stages import program
from stages.running.ahead import ahead
from stages.running.estimates import refinement_words
from stages.running.hardware import chosen_device
from stages.running.jobs import run_parts
from stages.settings.params import Params, load
from stages.settings.sections import SegmentParams

AT_ONCE = {"cpu": 1, "cuda": 4}  # images: a GPU would wait for what the CPU does of one
PART_IMAGES = 8  # images of one part: what a kill loses at most


class Job(NamedTuple):
    """Everything that a worker needs to fill any part; small enough to send around."""

    work: str
    features: str
    context: str
    head: str
    fingerprint: str
    choices: SegmentParams
    device: str


def segment(params: Params, features: str, context: str, head: str, index: str, out: str) -> None:
    """Turn cached features into label maps of the training and the evaluation split.

    Args:
        features, context, head, index: paths of what these stages wrote.
        out: path of the label maps to write. Interrupted, the same call goes on where it was.
    """
    chosen, device = params.segment, params.compute.device
    hardware = chosen_device(device)
    cache = Features.open(features).beside(context)
    trained = heads.load_head(head)[2]
    check_head(head, trained, cache)
    rows = images_of(read_index(index), index, cache)
    clusters = open_segmenter(head, chosen, device).clusters
    manifest = describe(chosen, cache, trained, rows, clusters)
    with work_folder(out, manifest["fingerprint"]) as work:
        job = Job(str(work), features, context, head, manifest["fingerprint"], chosen, device)
        images = {
            f"{i:08d}": (rows[i : i + PART_IMAGES],) for i in range(0, len(rows), PART_IMAGES)
        }
        if words := crf_words(rows, cache, chosen.crf, len(clusters), hardware):
            click.echo(words, err=True)
        names = run_parts(fill_part, job, images, params.compute, "segmenting")
        parts.assemble(work, names, out, manifest)
    click.echo(f"{out}: {len(rows)} images, {size(out) / 1e6:.1f} MB")


def open_segmenter(head: str, choices: SegmentParams, device: str) -> Segmenter:
    """Open a trained head with the choices of section `segment`."""
    state, fitted, manifest = heads.load_head(head)
    return Segmenter(
        manifest,
        state,
        fitted,
        choose_device(device),
        temperature=choices.temperature,
        refiner=CRFS[choices.crf],
        merge_to=choices.merge_to,
    )


def fill_part(job: Job, name: str, images: Sequence[ImageRow]) -> None:
    """Compute and write the maps of some images."""
    clusters = _opened(job)[1].clusters
    threads = AT_ONCE[choose_device(job.device).type]
    with closing(ahead(partial(maps_of, job), images, threads=threads, waiting=threads)) as made:
        write_maps(job.work, name, (maps for _, maps in made), clusters)


def maps_of(job: Job, image: ImageRow) -> ImageMaps:
    """Compute the label maps of an image in every protocol, and its scores at the patch grid."""
    cache, segmenter = _opened(job)
    photo = read_row(image) if CRFS[job.choices.crf] else None
    labels, grids = {}, []
    for protocol in cache.manifest["protocols"]:
        found, scores = score_cached(cache, segmenter, image, protocol)
        grids.append([at_grid(found, scores[name]) for name in ("eigenfunctions", "ours")])
        for ending, pixels in (("", None), (CRF, photo))[: 1 if photo is None else 2]:
            labels[f"{protocol}{ending}"] = {
                name: segmenter.label_map(scores, name, found, pixels)
                for name in segmenter.clusters
            }
    functions, ours = grids[0]
    return ImageMaps(image.id, labels, functions.cpu().numpy(), *runner_up(ours))


def crf_words(
    rows: Sequence[ImageRow], cache: Features, crf: str, predictors: int, device: torch.device
) -> str:
    """Say how long the CRF of all maps takes; "" without one, or where it is less than a minute."""
    if (refine := CRFS[crf]) is None:
        return ""
    plans = [
        plan(Geometry(**geometry), row.height, row.width)
        for row in rows
        for geometry in cache.manifest["protocols"].values()
    ]
    sizes = [grid((0, 0, *p.resized), p.patch) if refine is ours else p.size for p in plans]
    points = sum(h * w for h, w in sizes) * (POINTS**2 if refine is ours else 1)
    return refinement_words(refine, read_row(rows[0]), predictors, points, device)


def score_cached(
    cache: Features, segmenter: Segmenter, image: ImageRow, protocol: str
) -> tuple[Plan, Scores]:
    """Plan an image as a protocol does, and score its cached tokens."""
    protocols = cache.manifest["protocols"]
    found = plan(Geometry(**protocols[protocol]), image.height, image.width)
    tiles = cache.tiles_of_image(image.id, -1 - list(protocols).index(protocol))
    tokens = ({level: cache.tokens(level, tile) for level in segmenter.used} for tile in tiles)
    return found, segmenter.scores(tokens, found)


@lru_cache(maxsize=1)
def _opened(job: Job) -> tuple[Features, Segmenter]:
    """The cache and the models; opened once in each process."""
    segmenter = open_segmenter(job.head, job.choices, job.device)
    return Features.open(job.features).beside(job.context), segmenter


def check_head(path: str, manifest: dict, cache: Features) -> None:
    """Raise InputError unless the head was trained on this cache."""
    if cache.fingerprint != manifest["features"]:
        raise InputError(
            f"the head {path} was trained on another feature cache ({manifest['features']}, "
            f"{cache.path} is {cache.fingerprint}): run `eigenseg train` (or `dvc repro train`) "
            "again."
        )


def images_of(rows: Sequence[ImageRow], index: str, cache: Features) -> list[ImageRow]:
    """The images that get label maps, in the order of their ids."""
    cache.check_images(rows, index)
    return [row for row in rows if row.split in cache.manifest["segmented"]]


def describe(
    choices: SegmentParams,
    cache: Features,
    head: dict,
    rows: Sequence[ImageRow],
    clusters: Mapping[str, int],
) -> dict:
    """Describe what the maps are made from; the fingerprint covers the trained values."""
    made_from = {
        "features": cache.fingerprint,
        "head": head["fingerprint"],
        "model": head["backbone"]["model"],
        "seed": head["seed"],
        "curve": head["curve"],
        "labelled": head["labelled"],
        **choices.model_dump(exclude={"names"}),
        "clusters": dict(clusters),
        "protocols": cache.manifest["protocols"],
        "variants": variants(cache.manifest["protocols"], choices.crf),
        "images": {row.id: row.sha256 for row in rows},
    }
    sizes = [(row.height, row.width) for row in rows]
    trained = head["sha256"]
    return {
        "format": FORMAT,
        **made_from,
        "fingerprint": fingerprint("segments", FORMAT, made_from, trained, sizes),
    }


def variants(protocols: Iterable[str], crf: str) -> list[str]:
    """The kinds of label maps: each protocol, and each with the CRF if there is one."""
    endings = ["", CRF] if CRFS[crf] is not None else [""]
    return [f"{name}{ending}" for name in protocols for ending in endings]


def command(params: str, features: str, context: str, head: str, index: str, out: str) -> None:
    """Do what the command line asks for."""
    segment(load(params), features, context, head, index, out)


if __name__ == "__main__":
    program("segment")
