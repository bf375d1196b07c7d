"""The eval stage: label maps and ground truth -> counts, mappings, scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import click
import numpy as np

from cache import results
from cache.index import ImageRow, read_index
from cache.labels import LabelRow, read_label, read_labels
from cache.segments import Segments
from cache.store.errors import InputError
from pipeline.evaluation import MATCHINGS, confusion, count, scores
from stages import Stage
from stages.params import Params, load
from stages.progress import track
from stages.score_table import print_scores


class Tally(NamedTuple):
    """What one pass over the label maps leaves: counts by predictor and split, clusters in use."""

    counts: results.Counts
    used: dict[str, np.ndarray]


def evaluate(params: Params, index: str, labels: str, segments: str, out: str) -> None:
    """Count clusters against classes, fit and score every matching, write and print the scores.

    Args:
        index, labels, segments: paths of what `prepare` and `segment` wrote.
        out: folder for metrics.json, counts.json, mapping.json and per_class.csv.
    """
    data = params.data
    images = read_index(index)
    classes, truth = read_labels(labels, images)
    with Segments(segments) as store:
        rows = select(images, truth, data.train, data.eval, store, segments)
        tally = tally_images(rows, truth, len(classes), data.eval, store)
        made_from = results.made_from(store.manifest, images, classes, truth, data.train, data.eval)
    found = assess(tally, classes, data.train, data.eval, store.manifest["head"])
    results.write_evaluation(out, found, made_from)
    print_scores(found.metrics, data.train, data.eval)


def select(
    rows: Sequence[ImageRow],
    truth: dict[int, LabelRow],
    train: str,
    evaluated: str,
    store: Segments,
    path: str,
) -> list[ImageRow]:
    """The images to go through: the evaluation split and what is labelled of the training split.

    Raises:
        InputError: some of them have no label map.
    """
    wanted = [
        row for row in rows if row.split == evaluated or (row.split == train and row.id in truth)
    ]
    missing = [row.stem for row in wanted if row.sha256 not in store.by_content]
    if missing or not wanted:
        raise InputError(
            f"{path} must hold a label map of every image of the splits {train} and {evaluated}, "
            f"{len(missing)} of {len(wanted)} lack theirs ({', '.join(missing[:10])}): "
            "run `eigenseg segment` (or `dvc repro segment`)."
        )
    return wanted


def tally_images(
    rows: Sequence[ImageRow],
    truth: dict[int, LabelRow],
    n_classes: int,
    evaluated: str,
    store: Segments,
) -> Tally:
    """Go through the label maps once, one image in memory at a time.

    Raises:
        InputError: a label is missing, has changed since prepare, or its size isn't the map's.
    """
    counts: results.Counts = {name: {} for name in store.clusters}
    used = {name: np.zeros(k, dtype=bool) for name, k in store.clusters.items()}
    for row in track(rows, "counting pixels"):
        label = _label(truth.get(row.id))
        for name, k in store.clusters.items():
            clusters = store.read(name, store.by_content[row.sha256])
            if row.split == evaluated:
                used[name] |= np.bincount(clusters.ravel(), minlength=k) > 0
            if label is None:
                continue
            if clusters.shape != label.shape:
                raise InputError(
                    f"{truth[row.id].path}: label and label map must have one size, found "
                    f"{label.shape} and {clusters.shape} (rows, columns): the label maps are of "
                    "another version of the image. Run prepare, then segment again."
                )
            pairs = count(clusters, label, k, n_classes)
            counts[name][row.split] = counts[name].get(row.split, 0) + pairs
    return Tally(counts, used)


def _label(row: LabelRow | None) -> np.ndarray | None:
    return None if row is None else read_label(row.path, row.sha256)


def assess(
    tally: Tally, classes: Sequence[str], train: str, evaluated: str, head: str
) -> results.Evaluation:
    """Score every predictor with every matching, fitted on either split.

    With one split for both there is no `train` mapping: it would be the oracle by another name.
    """
    metrics: dict[str, dict[str, Any]] = {
        name: {"k": int(used.size), "clusters_used": int(used.sum())}
        for name, used in tally.used.items()
    }
    labelled = {split for splits in tally.counts.values() for split in splits}
    fitted = {split: _fit(tally.counts, split) for split in labelled}
    per_class: list[results.ClassScore] = []
    for origin, split in {"oracle": evaluated, "train": train}.items():
        if not {split, evaluated} <= labelled or (origin == "train" and split == evaluated):
            continue
        for name, matching in product(tally.counts, MATCHINGS):
            score = scores(confusion(tally.counts[name][evaluated], fitted[split][name][matching]))
            metrics[name].setdefault(matching, {})[origin] = {
                "miou": score.miou,
                "accuracy": score.accuracy,
                "classes_covered": score.classes_covered,
            }
            per_class += [
                results.ClassScore(name, matching, origin, label, float(iou))
                for label, iou in zip(classes, score.iou, strict=True)
            ]
    fitted_on = next((split for split in (train, evaluated) if split in labelled), None)
    mappings = fitted[fitted_on] if fitted_on else {}
    kept = results.ClassMapping(head, fitted_on, list(classes), mappings)
    return results.Evaluation(metrics, classes, tally.counts, kept, per_class)


def _fit(counts: results.Counts, split: str) -> dict[str, dict[str, np.ndarray]]:
    return {
        name: {matching: fit(splits[split]) for matching, fit in MATCHINGS.items()}
        for name, splits in counts.items()
    }


@click.command(cls=Stage)
@click.option("--params", default="params.yaml", help="Choices.")
@click.option("--index", default="data/index.csv", help="Index of images.")
@click.option("--labels", default="data/labels.csv", help="Index of labels.")
@click.option("--segments", default="data/segments.h5", help="Label maps.")
@click.option("--out", default="results", help="Folder for the results.")
def main(params: str, index: str, labels: str, segments: str, out: str) -> None:
    """Count clusters against classes and score every matching.

    Reads the label maps and, where there are labels, the ground truth of the training and the
    evaluation split. Writes metrics.json, counts.json, mapping.json and per_class.csv to results/,
    and prints the scores: `oracle` mappings are fitted on the very labels that are scored, `train`
    mappings on the training split's. Without labels it counts the clusters in use.
    """
    evaluate(load(params), index, labels, segments, out)


if __name__ == "__main__":
    main()
