"""The report stage: results, label maps and images -> one HTML page with its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from cache import results
from cache.images import read_image
from cache.index import ImageRow, read_index
from cache.labels import LabelRow, read_label, read_labels
from cache.segments import Segments
from cache.store.errors import InputError
from pipeline.evaluation import confusion, scores
from stages import Stage
from stages import drawing as report
from stages.colours import blend, class_colours, colour, eigenfunction_image, palette
from stages.params import Params, load
from stages.progress import track
from stages.score_table import print_scores

MATCHING = "majority_iou"  # that colours and charts follow
IMAGES = 8  # in the gallery
WIDTH = 320  # px of the gallery's pictures
OPACITY = 0.75
ABLATION_NOTE = (
    "One parameter at a time is set to other values than that of params.yaml, which is shaded; all "
    f"else stays. Charts: mIoU ({MATCHING}, oracle), a dot for each seed, lines through the means. "
    "Table: mIoU with oracle mappings, the mean over the seeds, and max - min in brackets."
)


class Colours(NamedTuple):
    """uint8 colours: of the classes (the last one means none) and of each predictor's clusters."""

    classes: np.ndarray
    clusters: dict[str, np.ndarray]


def make_report(
    params: Params, index: str, labels: str, segments: str, results_folder: str, out: str
) -> None:
    """Draw the metrics, curves and gallery as one HTML page.

    Args:
        index, labels, segments, results_folder: paths of what the stages before wrote.
        out: folder of the page and its pictures to write.
    """
    folder = results_folder
    truth = read_labels(labels)[1]
    mapping = results.read_mapping(Path(folder) / "mapping.json")
    rows = [row for row in read_index(index) if row.split == params.data.eval]
    with Segments(segments) as store:
        check_mapping(mapping, store)
        colours = choose_colours(mapping, store.clusters)
        gallery = [
            example(number, row, truth.get(row.id), store, colours)
            for number, row in enumerate(track(spaced(rows, IMAGES), "drawing"))
        ]
    page = compose(params, Path(folder), mapping, colours, gallery, {})
    report.write_report(out, page)
    print_scores(page.metrics, params.data.train, params.data.eval)
    if page.origins:
        click.echo(verdict(page.metrics))
    click.echo(f"Report: {Path(out) / 'index.html'}")


def spaced(rows: Sequence[ImageRow], n: int) -> list[ImageRow]:
    """At most ``n`` rows, evenly spaced from the first to the last."""
    places = np.linspace(0, len(rows) - 1, min(n, len(rows))).round().astype(int)
    return [rows[place] for place in places]


def check_mapping(mapping: results.ClassMapping, store: Segments) -> None:
    """Make sure that the results are of these label maps.

    Raises:
        InputError: they were made with another head.
    """
    if mapping.head != store.manifest["head"]:
        raise InputError(
            f"the results must be of the head whose label maps {store.path} holds "
            f"({store.manifest['head']}), found those of {mapping.head}: run `eigenseg eval` (or "
            "`dvc repro eval`) again."
        )


def choose_colours(mapping: results.ClassMapping, clusters: dict[str, int]) -> Colours:
    """Clusters get the colours of their classes or, without labels, each its own."""
    classes = class_colours(len(mapping.classes))
    if mapping.fitted_on is None:
        return Colours(classes, {name: palette(k) for name, k in clusters.items()})
    return Colours(classes, {name: classes[mapping.clusters[name][MATCHING]] for name in clusters})


def example(
    number: int, row: ImageRow, label: LabelRow | None, store: Segments, colours: Colours
) -> report.Example:
    """The pictures of one image: photo, ground truth, each predictor, the first eigenfunctions."""
    photo = read_image(row.path)
    height = max(1, round(WIDTH * row.height / row.width))

    def picture(name: str, caption: str, pixels: np.ndarray, smooth: bool) -> report.Picture:
        png = report.encode(pixels, WIDTH, height, smooth)
        return report.Picture(f"gallery_{number:02d}_{name}", caption, png)

    maps = [picture("image", "image", photo, True)]
    if label is not None:
        truth = colour(read_label(label.path, label.sha256), colours.classes)
        maps.append(picture("truth", "ground truth", blend(photo, truth, OPACITY), True))
    for name, shades in colours.clusters.items():
        clusters = colour(store.read(name, row.id), shades)
        maps.append(picture(name, name, blend(photo, clusters, OPACITY), True))
    functions = [
        picture(f"psi_{i}", f"eigenfunction {i + 1}", eigenfunction_image(values), False)
        for i, values in enumerate(store.eigenfunctions(row.id))
    ]
    return report.Example(row.stem, maps, functions)


def compose(
    params: Params,
    folder: Path,
    mapping: results.ClassMapping,
    colours: Colours,
    gallery: list[report.Example],
    axes: dict,
) -> report.Page:
    """Put the page together from the results folder and the drawn gallery."""
    metrics = results.read_metrics(folder / "metrics.json")
    counts = results.read_counts(folder / "counts.json")[1]
    train, evaluated = params.data.train, params.data.eval
    source = f"fitted on the labels of {mapping.fitted_on}"
    if mapping.fitted_on == evaluated:
        source += ", which are also the ones scored: an oracle"
    labelled = mapping.fitted_on is not None
    legend = [
        *zip(mapping.classes, colours.classes, strict=False),
        ("no class", colours.classes[-1]),
    ]
    return report.Page(
        title=f"eigenseg: {params.dataset}",
        facts={
            "evaluated split": evaluated,
            "training split": train,
            "backbone": params.vit.model,
            "seed": params.seed,
        },
        metrics=metrics,
        origins=origins(metrics, train, evaluated),
        score_notes=score_notes(metrics, train, evaluated),
        charts=class_charts(counts, mapping, evaluated),
        chart_note=f"Clusters take classes by {MATCHING}, {source}.",
        curves=curve_charts(results.read_curve(folder / "curve.csv")),
        ablations=axes,
        ablation_charts=[],
        ablation_note=ABLATION_NOTE,
        legend=legend if labelled else [],
        gallery_note=(
            f"Each cluster has the colour of its class ({MATCHING}, {source})."
            if labelled
            else "Each cluster has its own colour, the same in every image of one predictor."
        ),
        gallery=gallery,
    )


def origins(metrics: dict[str, dict[str, Any]], train: str, evaluated: str) -> dict[str, str]:
    """Headings of the kinds of mapping that the metrics hold."""
    headings = {"oracle": f"oracle: fitted on {evaluated}", "train": f"fitted on {train}"}
    held = {key for entry in metrics.values() for key in entry.get(MATCHING, {})}
    return {key: heading for key, heading in headings.items() if key in held}


def verdict(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether the eigenfunctions beat the baseline in this run, said plainly."""
    ours, baseline = (metrics[name][MATCHING]["oracle"]["miou"] for name in ("ours", "kmeans"))
    word = "beats" if ours > baseline else "does not beat"
    return (
        f"In this run ours {word} kmeans at the same K: {ours:.1f} against {baseline:.1f} mIoU "
        f"({MATCHING}, oracle). One seed proves little; docs/results.md has means over seeds."
    )


def score_notes(metrics: dict[str, dict[str, Any]], train: str, evaluated: str) -> list[str]:
    """The verdict, and how to read the table of scores."""
    held = origins(metrics, train, evaluated)
    if not held:
        return [f"The split {evaluated} has no labels: there is nothing to score."]
    notes = [
        verdict(metrics),
        "mIoU is the mean over the classes present in the ground truth, accuracy the share of "
        "valid pixels, both in percent; classes counts the classes that are predicted somewhere. "
        "More clusters raise both scores, so compare at equal K.",
        f"An oracle mapping from clusters to classes is fitted on the labels of {evaluated} that "
        "are scored; it is what published tables use.",
    ]
    if "train" in held:
        notes.append(f"The other mapping has seen the labels of {train} only.")
    return notes


def class_charts(
    counts: results.Counts, mapping: results.ClassMapping, evaluated: str
) -> list[report.Picture]:
    """IoU of each class, and every predictor's confusion matrix, on the evaluated split."""
    merged = {
        name: confusion(splits[evaluated], mapping.clusters[name][MATCHING])
        for name, splits in counts.items()
        if evaluated in splits
    }
    if not merged:
        return []
    ious = {name: scores(matrix).iou for name, matrix in merged.items()}
    bars = report.iou_chart(ious, mapping.classes)
    return [report.Picture("per_class_iou", "IoU by class", bars)] + [
        report.Picture(
            f"confusion_{name}",
            f"{name}: each true class's pixels by predicted class, %",
            report.confusion_chart(matrix, mapping.classes),
        )
        for name, matrix in merged.items()
    ]


def curve_charts(curve: dict[str, np.ndarray]) -> list[report.Picture]:
    """One picture per column of the training curve."""
    return [
        report.Picture(f"curve_{name}", name, report.curve_chart(curve["step"], values))
        for name, values in curve.items()
        if name != "step"
    ]


@click.command(cls=Stage)
@click.option("--params", default="params.yaml", help="Choices.")
@click.option("--index", default="data/index.csv", help="Index of images.")
@click.option("--labels", default="data/labels.csv", help="Index of labels.")
@click.option("--segments", default="data/segments.h5", help="Label maps.")
@click.option("--results", default="results", help="Folder of the results.")
@click.option("--out", default="results/report", help="Folder to write.")
def main(params: str, index: str, labels: str, segments: str, results: str, out: str) -> None:
    """Draw the metrics, curves and gallery as one HTML page.

    Reads the results of eval, the training curve, and of the gallery's images the photos, label
    maps, eigenfunctions and labels. Writes index.html, which needs no network, and every picture
    as PNG to results/report/. Prints the scores and where the page is.
    """
    make_report(load(params), index, labels, segments, results, out)


if __name__ == "__main__":
    main()
