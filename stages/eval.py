"""The eval stage: label maps and ground truth -> counts, mappings, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cache import results
from cache.index import ImageRow, read_index
from cache.labels import LabelRow, read_label, read_labels
from cache.segments import SEMI_SUPERVISED, Segments
from cache.store.errors import InputError
from pipeline.evaluation import MATCHINGS, UNMATCHED, Scores, confusion, count, scores
from pipeline.mappings import choose_images, fit_all, origins_of, summary
from stages import program
from stages.running.progress import track
from stages.settings.params import Params, load
from stages.settings.sections import EvalParams
from stages.showing.planned import plan_of
from stages.showing.score_table import print_scores

DIRECT = "direct"  # in place of a matching, where a predictor says classes itself
LEARNED = "labels"  # in place of what a mapping was fitted on
PREDICTOR = "ours"  # whose clusters choose the images to label

T = TypeVar("T")
Samples = dict[str, set[int]]
"""Ids of the images that are counted, by what they are counted for: a split, or a choice of it."""


class Split(NamedTuple):
    """A data set to score: its name, the split that a mapping may be fitted on, the split whose
    labels are scored (the same where there is an oracle alone), the classes (none without labels).
    """

    dataset: str
    train: str
    evaluated: str
    classes: Sequence[str]


class Tally(NamedTuple):
    """Counts of pixels, and the clusters in use by variant and predictor."""

    counts: results.Counts
    used: dict[str, dict[str, np.ndarray]]


def evaluate(params: Params, index: str, labels: str, segments: str, out: str) -> None:
    """Count clusters against classes, fit and score every matching, write and print the scores.

    Args:
        index, labels, segments: paths of what `prepare` and `segment` wrote.
        out: folder for metrics.json, counts.json, mapping.json and per_class.csv.
    """
    images = read_index(index)
    classes, truth = read_labels(labels, images)
    sets, train = params.eval_sets, params.train_split
    found = {}
    with Segments(segments) as store:
        for name, split in sets:
            data = Split(name, params.fitted_on(name, split), split, classes.get(name, []))
            fitting = (data.train,) if "train" in params.eval.mapping else ()
            rows = select(images, truth, fitting, split, store, segments)
            samples = samples_of(rows, truth, data, params.eval, params.seed, store)
            direct = direct_mapping(store, data.classes)
            predictors = clustered(store.clusters) if direct is None else store.clusters
            tally = tally_images(rows, truth, data, samples, store, predictors)
            head = store.manifest["head"]
            found[name] = assess(tally, data, params.eval, head, store.main, direct)
        made_from = results.made_from(
            store.manifest, images, classes, truth, train, sets, params.eval.model_dump()
        )
        learned = store.manifest["labelled"]
    results.write_evaluation(out, found, made_from)
    for name, split in sets:
        fitted = params.fitted_on(name, split)
        print_scores(name, found[name].metrics, fitted, split, train, learned)


def select(
    rows: Sequence[ImageRow],
    truth: dict[int, LabelRow],
    fitting: Sequence[str],
    evaluated: str,
    store: Segments,
    path: str,
) -> list[ImageRow]:
    """The images to go through: the evaluation split and what is labelled of those to fit on.

    Raises:
        InputError: some of them have no label map.
    """
    wanted = [
        row for row in rows if row.split == evaluated or (row.split in fitting and row.id in truth)
    ]
    if not any(row.split == evaluated for row in wanted):
        raise InputError(
            f"the index must hold split {evaluated}, found {', '.join({r.split: 0 for r in rows})}:"
            " it is of another data set. Run `dvc repro`, or `eigenseg prepare` and all stages "
            "after it."
        )
    missing = [row.stem for row in wanted if row.sha256 not in store.by_content]
    if missing:
        splits = " and ".join(dict.fromkeys([*fitting, evaluated]))
        raise InputError(
            f"{path} must hold a label map of every image of {splits}, "
            f"{len(missing)} of {len(wanted)} lack theirs ({', '.join(missing[:10])}): "
            "run `eigenseg segment` (or `dvc repro segment`)."
        )
    return wanted


def samples_of(
    rows: Sequence[ImageRow],
    truth: dict[int, LabelRow],
    data: Split,
    choices: EvalParams,
    seed: int,
    store: Segments,
) -> Samples:
    """The splits, or the evaluation split and what is chosen of the training split, label-free."""
    n = choices.labelled
    splits = {
        name: {row.id for row in rows if row.split == name}
        for name in dict.fromkeys((data.train, data.evaluated))
    }
    stored = {row.id: store.by_content[row.sha256] for row in rows}
    ids = sorted(splits[data.train] & truth.keys())
    if "train" not in choices.mapping:
        return {data.evaluated: splits[data.evaluated]}
    if n == "all" or data.train == data.evaluated or len(ids) <= n:
        return splits
    k = store.clusters[PREDICTOR]
    areas = np.stack(
        [
            np.bincount(store.read(PREDICTOR, stored[i]).ravel(), minlength=k)
            for i in track(ids, "choosing")
        ]
    )
    chosen = choose_images(areas, n, np.random.default_rng(seed))
    by_name = {name: {ids[i] for i in places} for name, places in chosen.items()}
    return {data.evaluated: splits[data.evaluated], **by_name}


def direct_mapping(store: Segments, classes: Sequence[str]) -> np.ndarray | None:
    """Find learned classes among these by their names: indices int64, -1 = none of them.

    None where nothing was learned, or only classes of other labels, which cannot be scored here.
    """
    if (labelled := store.manifest["labelled"]) is None:
        return None
    index = {name: i for i, name in enumerate(classes)}
    found = np.array([index.get(name, UNMATCHED) for name in labelled["classes"]], np.int64)
    return found if not classes or (found != UNMATCHED).any() else None


def tally_images(
    rows: Sequence[ImageRow],
    truth: dict[int, LabelRow],
    data: Split,
    samples: Samples,
    store: Segments,
    predictors: Mapping[str, int],
) -> Tally:
    """Go through the label maps once, one image in memory at a time.

    Args:
        predictors: K by predictor.

    Raises:
        InputError: a label is missing, has changed since prepare, or its size isn't the map's.
    """
    pairs = list(product(store.variants, predictors))
    counts: results.Counts = {v: {name: {} for name in predictors} for v in store.variants}
    used = {
        v: {name: np.zeros(k, dtype=bool) for name, k in predictors.items()} for v in store.variants
    }
    wanted = set().union(*samples.values())
    for row in track([row for row in rows if row.id in wanted], "counting pixels"):
        whole = _label(truth.get(row.id))
        for variant, name in pairs:
            k = predictors[name]
            clusters = store.read(name, store.by_content[row.sha256], variant)
            if row.split == data.evaluated:
                used[variant][name] |= np.bincount(clusters.ravel(), minlength=k) > 0
            if whole is None:
                continue
            label = plan_of(store, row, variant).cut_label(whole)
            check_size(truth[row.id].path, label, clusters)
            table = counts[variant][name]
            found = count(clusters, label, k, len(data.classes))
            for sample in (key for key, ids in samples.items() if row.id in ids):
                table[sample] = table.get(sample, 0) + found
    return Tally(counts, used)


def check_size(path: str, label: np.ndarray, clusters: np.ndarray) -> None:
    """Raise InputError unless label and label map have one size."""
    if clusters.shape != label.shape:
        raise InputError(
            f"{path}: label and label map must have one size, found {label.shape} and "
            f"{clusters.shape} (rows, columns): the label maps are of another version of the "
            "image. Run prepare, then segment again."
        )


def _label(row: LabelRow | None) -> np.ndarray | None:
    return None if row is None else read_label(row.path, row.sha256, row.table)


def assess(
    tally: Tally,
    data: Split,
    choices: EvalParams,
    head: str,
    main: str,
    direct: np.ndarray | None,
) -> results.Evaluation:
    """Score every predictor with every matching, fitted on either split or on a choice of images.

    Args:
        main: the variant whose mapping is kept.
        direct: `direct_mapping`.
    """
    metrics: dict[str, dict[str, dict[str, Any]]] = {
        variant: {
            name: {"k": int(used.size), "clusters_used": int(used.sum())}
            for name, used in by_name.items()
        }
        for variant, by_name in tally.used.items()
    }
    per_class: list[results.ClassScore] = []
    for variant, counts in tally.counts.items():
        fitted, oracle = fit_all(counts), "oracle" in choices.mapping
        origins = origins_of(fitted, data.train, data.evaluated, oracle=oracle)
        for origin, samples in origins.items():
            for name, matching in product(clustered(counts), MATCHINGS):
                table = counts[name][data.evaluated]
                found = [scores(confusion(table, fitted[s][name][matching])) for s in samples]
                metrics[variant][name].setdefault(matching, {})[origin] = summary(found)
                place = data.dataset, variant, name, matching, origin
                per_class += class_scores(place, data.classes, found)
        if direct is not None and data.evaluated in counts.get(SEMI_SUPERVISED, {}):
            table = counts[SEMI_SUPERVISED][data.evaluated]
            found = [scores(confusion(table, direct))]
            metrics[variant][SEMI_SUPERVISED][DIRECT] = {LEARNED: summary(found)}
            place = data.dataset, variant, SEMI_SUPERVISED, DIRECT, LEARNED
            per_class += class_scores(place, data.classes, found)
    kept = kept_mapping(tally.counts[main], data, choices.labelled, head, direct)
    return results.Evaluation(metrics, data.classes, tally.counts, kept, per_class)


def clustered(by_name: Mapping[str, T]) -> dict[str, T]:
    """Leave out the predictor that needs no mapping, because it says classes."""
    return {name: value for name, value in by_name.items() if name != SEMI_SUPERVISED}


def class_scores(
    place: tuple[str, str, str, str, str], classes: Sequence[str], found: Sequence[Scores]
) -> list[results.ClassScore]:
    """Give the mean IoU of each class over several mappings.

    Args:
        place: data set, variant, predictor, matching and origin.
    """
    ious = np.mean([score.iou for score in found], axis=0).tolist()
    return [results.ClassScore(*place, *pair) for pair in zip(classes, ious, strict=True)]


def kept_mapping(
    counts: Mapping[str, Mapping[str, np.ndarray]],
    data: Split,
    labelled: int | str,
    head: str,
    direct: np.ndarray | None,
) -> results.ClassMapping:
    """The mapping that `predict` and pictures use: fitted on the training split if there is one."""
    train, fitted = data.train, fit_all(counts)
    fitted_on = next((s for s in (train, "different", data.evaluated) if s in fitted), None)
    mappings = fitted[fitted_on] if fitted_on else {}
    if SEMI_SUPERVISED in mappings and direct is not None:
        mappings[SEMI_SUPERVISED] = dict.fromkeys(MATCHINGS, direct)
    if fitted_on == "different":
        fitted_on = f"{train}, the {labelled} most different images"
    return results.ClassMapping(head, fitted_on, list(data.classes), mappings)


def command(params: str, index: str, labels: str, segments: str, out: str) -> None:
    """Do what the command line asks for."""
    evaluate(load(params), index, labels, segments, out)


if __name__ == "__main__":
    program("eval")
