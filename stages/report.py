"""The report stage: results, label maps and images -> one HTML page with its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from cache import results as store
from cache.commit import commit
from cache.index import ImageRow, read_index
from cache.labels import LabelRow, read_label, read_labels
from cache.names import PREDICTOR
from cache.segments import SEMI_SUPERVISED, Segments
from pipeline.evaluation import MATCHINGS, confusion, count, scores
from stages import program
from stages.running.progress import track
from stages.settings.params import Params, load
from stages.showing.atlas import make_atlas
from stages.showing.drawing import Picture, confusion_chart, curve_chart, iou_chart
from stages.showing.gallery import (
    MATCHING,
    Colours,
    Named,
    choose_colours,
    example,
    find_named,
    named_areas,
    spaced,
)
from stages.showing.letters import tell_unshown
from stages.showing.pages import render, write_pages
from stages.showing.planned import plan_of
from stages.showing.score_table import learned_from, oracle_alone
from stages.showing.sweep import draw_sweep

SUGGESTING = "majority_count"  # that names to begin with follow: the likeliest class
IMAGES = 8  # in the gallery
CURVES = {
    "loss": "what training lowers: penalty less trace",
    "trace": "how much of the graph the eigenfunctions explain: it should rise",
    "penalty": "how far the eigenfunctions are from being independent",
    "clusters": "clusters that patches of a step fall into",
    "tau": "temperature of the Gumbel-softmax: assignments harden as it falls",
    "lr": "learning rate",
}


def make_report(
    params: Params,
    index: str,
    labels: str,
    segments: str,
    results_folder: str,
    out: str,
    named_folder: str = "data/named",
) -> None:
    """Draw the metrics, curves and gallery of every data set as one HTML page.

    Args:
        index, labels, segments, results_folder, named_folder: paths of what the stages before
            wrote; the last one may be absent.
        out: folder of the page and its pictures to write.
    """
    folder, sets, train = Path(results_folder), params.eval_sets, params.train_split
    images = read_index(index)
    classes, truth = read_labels(labels, images)
    tell_unshown([word for names in classes.values() for word in names])
    with Segments(segments) as maps:
        made_from = store.made_from(
            maps.manifest, images, classes, truth, train, sets, params.eval.model_dump()
        )
        found = store.read_evaluation(folder, made_from)
        curve = store.read_curve(folder / "curve.csv", maps.manifest["curve"])
        named = find_named(named_folder, maps.manifest["head"], maps.clusters[PREDICTOR])
        sections, labelled = [], maps.manifest["labelled"]
        for name, split in sets:
            rows = [row for row in images if row.split == split]
            fitted_on = params.fitted_on(name, split)
            prefix = f"{name}_" if len(sets) > 1 else ""
            section = draw_set(
                prefix, name, found[name], (fitted_on, split), rows, truth, maps, named
            )
            if labelled:
                section["score_notes"].append(learned_from(labelled))
            if section["origins"] and fitted_on != train:
                section["score_notes"].append(oracle_alone(train))
            sections.append(section)
        title = f"{', '.join(params.evaluated)}: names for clusters"
        mapping = found[sets[0][0]].mapping
        shown = maps.stored(images)
        given = suggestion(mapping) or learned_suggestion(maps, shown)
        atlas = make_atlas(title, shown, maps, given, named.file if named else None)
        facts, main = run_facts(params, maps), maps.main
        curves = curve_charts(curve)
        pictures = [picture for one in sections for picture in one["pictures"]] + curves
        page = render(
            "report.html", sections=sections, curves=curves, named=named_areas(named), **facts
        )
        write_pages(out, {"index.html": page, "clusters.html": atlas}, pictures)
    for (name, _), section in zip(sets, sections, strict=True):
        if "oracle" in section["origins"]:
            click.echo(f"{name}: " * (len(sets) > 1) + verdict(found[name].metrics[main]))
    pages = [Path(out) / name for name in ("index.html", "clusters.html")]
    click.echo(f"Open {pages[0]} (scores, gallery) and {pages[1]} (names for the clusters).")


def draw_set(
    prefix: str,
    name: str,
    found: store.Evaluation,
    splits: tuple[str, str],
    rows: Sequence[ImageRow],
    truth: Mapping[int, LabelRow],
    maps: Segments,
    named: Named | None,
) -> dict[str, Any]:
    """Draw the section of one data set, with all of its pictures.

    Args:
        prefix: begins the names of its pictures.
        name: of the data set.
        splits: what mappings may be fitted on, and the split that is scored.
        rows: the images of that split.
    """
    train, split = splits
    colours = choose_colours(found.mapping, maps.clusters, maps.manifest["labelled"])
    gallery = [
        example(
            f"{prefix}gallery_{number:02d}",
            row,
            truth_of(row, truth.get(row.id), maps),
            maps,
            colours,
            named,
        )
        for number, row in enumerate(track(spaced(rows, IMAGES), "drawing"))
    ]
    charts = [
        chart._replace(name=f"{prefix}{chart.name}")
        for chart in class_charts(found.counts[maps.main], found.mapping, split)
    ]
    shown = [picture for one in gallery for picture in (*one.maps, *one.eigenfunctions)]
    return {
        "dataset": name,
        "split": split,
        "heading": split if prefix else "",
        "gallery": gallery,
        "charts": charts,
        "pictures": [*charts, *shown],
        **score_tables(found.metrics, train, split),
        **legend_and_notes(found.mapping, colours, split),
    }


def truth_of(row: ImageRow, label: LabelRow | None, maps: Segments) -> np.ndarray | None:
    """Read the classes of the part of an image that label maps are of."""
    if label is None:
        return None
    return plan_of(maps, row).cut_label(read_label(label.path, label.sha256, label.table))


def suggestion(mapping: store.ClassMapping) -> dict[str, Any] | None:
    """The names that labels give to clusters; None without labels."""
    if mapping.fitted_on is None:
        return None
    clusters = mapping.clusters[PREDICTOR][SUGGESTING].tolist()
    source = f"the labels of {mapping.fitted_on}"
    return {"classes": mapping.classes, "clusters": clusters, "source": source}


def learned_suggestion(maps: Segments, rows: Sequence[ImageRow]) -> dict[str, Any] | None:
    """The names by which training's own classes would call clusters; None where it has none."""
    labelled = maps.manifest["labelled"]
    if labelled is None:
        return None
    k, classes = maps.clusters[PREDICTOR], labelled["classes"]
    table = np.zeros((k, len(classes)), np.int64)
    for row in rows:
        found = maps.read(SEMI_SUPERVISED, row.id)
        table += count(maps.read(PREDICTOR, row.id), found, k, len(classes))
    clusters = MATCHINGS[SUGGESTING](table).tolist()
    return {"classes": classes, "clusters": clusters, "source": "what training learned"}


def run_facts(params: Params, maps: Segments) -> dict[str, Any]:
    """Title, facts, parameters, and explanations of the page."""
    made_from = maps.manifest
    facts = {
        "evaluated split": ", ".join(split for _, split in params.eval_sets),
        "training split": params.train_split,
        "backbone": made_from["model"],
        "seed": made_from["seed"],
        "label maps of": maps.made,
    }
    if found := commit():
        facts["commit"] = found
    return {
        "title": f"eigenseg: {', '.join(params.evaluated)}",
        "facts": facts,
        "parameters": params.used_text(),
    }


def score_tables(
    metrics: dict[str, dict[str, dict[str, Any]]], train: str, evaluated: str
) -> dict[str, Any]:
    """Lay out the tables of scores, one for each protocol: the best of each column is marked."""
    first = next(iter(metrics.values()))
    held = origins(first, train, evaluated)
    entries = [entry for scored in metrics.values() for entry in scored.values()]
    matchings = [key for entry in entries for key in entry if isinstance(entry[key], Mapping)]
    best = {
        (variant, matching, origin): {
            score: max(
                entry[matching][origin][score]
                for entry in scored.values()
                if origin in entry.get(matching, {})
            )
            for score in ("miou", "accuracy")
        }
        for variant, scored in metrics.items()
        for matching, origin in {
            (m, o) for entry in scored.values() for m in matchings for o in entry.get(m, {})
        }
    }
    return {
        "tables": metrics,
        "matchings": [*dict.fromkeys(matchings)],
        "origins": held,
        "best": best,
        "score_notes": score_notes(first, train, evaluated),
    }


def legend_and_notes(
    mapping: store.ClassMapping, colours: Colours, evaluated: str
) -> dict[str, Any]:
    """Names and colours of the classes, and how to read gallery and charts."""
    source = f"fitted on the labels of {mapping.fitted_on}"
    if mapping.fitted_on == evaluated:
        source += ", which are also the ones scored: an oracle"
    chart_note = f"Clusters take classes by {MATCHING}, {source}."
    if mapping.fitted_on is None:
        note = "Each cluster has its own colour, the same in every image of one predictor."
        return {"legend": [], "gallery_note": note, "chart_note": chart_note}
    names = [*mapping.classes, "no class"]
    return {
        "legend": list(zip(names, colours.classes.tolist(), strict=True)),
        "gallery_note": f"Each cluster has the colour of its class ({MATCHING}, {source}).",
        "chart_note": chart_note,
    }


def origins(metrics: dict[str, dict[str, Any]], train: str, evaluated: str) -> dict[str, str]:
    """Headings of the kinds of mapping that the metrics hold."""
    headings = {
        "oracle": f"oracle: fitted on {evaluated}",
        "train": f"fitted on {train}",
        "typical": f"on the most typical of {train}",
        "different": f"on the most different of {train}",
        "random": f"on some of {train}, 5 draws",
        "labels": f"learned from labels of {train}",
    }
    tables = [one for entry in metrics.values() for one in entry.values()]
    held = {key for one in tables if isinstance(one, Mapping) for key in one}
    return {key: heading for key, heading in headings.items() if key in held}


def verdict(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Say plainly whether the eigenfunctions beat the baseline in this run."""
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
        return []
    notes = [verdict(metrics)] if "oracle" in held else []
    notes += [
        "mIoU is the mean over the classes present in the ground truth, accuracy the share of "
        "valid pixels, both in percent; classes counts the classes that are predicted somewhere. "
        "More clusters raise both scores, so compare at equal K. Bold: the best of a column.",
        "ours: the eigenfunctions' own clusters; ours_kmeans: K-means on the features inside the "
        "trained head; kmeans: K-means on the ViT's features, the baseline.",
        f"An oracle mapping from clusters to classes is fitted on the labels of {evaluated} that "
        "are scored; it is what published tables use.",
    ]
    if "train" in held:
        notes.append(f"The other mapping has seen the labels of {train} only.")
    if "different" in held:
        notes.append(f"The other mappings have seen the labels of a few images of {train} only.")
    return notes


def class_charts(
    counts: Mapping[str, Mapping[str, np.ndarray]], mapping: store.ClassMapping, evaluated: str
) -> list[Picture]:
    """IoU of each class, and every predictor's confusion matrix, on the evaluated split."""
    merged = {
        name: confusion(splits[evaluated], mapping.clusters[name][MATCHING])
        for name, splits in counts.items()
        if evaluated in splits
    }
    if not merged:
        return []
    ious = {name: scores(matrix).iou for name, matrix in merged.items()}
    bars = iou_chart(ious, mapping.classes)
    return [Picture("per_class_iou", "IoU by class", bars)] + [
        Picture(
            f"confusion_{name}",
            f"{name}: each true class's pixels by predicted class, %",
            confusion_chart(matrix, mapping.classes),
        )
        for name, matrix in merged.items()
    ]


def curve_charts(curve: dict[str, np.ndarray]) -> list[Picture]:
    """One picture per column of the training curve."""
    return [
        Picture(
            f"curve_{name}",
            f"{name}: {CURVES[name]}" if name in CURVES else name,
            curve_chart(curve["step"], values),
        )
        for name, values in curve.items()
        if name != "step"
    ]


def command(
    params: str, index: str, labels: str, segments: str, results: str, named: str,
    sweep: str | None, out: str,
) -> None:  # fmt: skip
    """Do what the command line asks for."""
    if sweep:
        draw_sweep(sweep, out)
    else:
        make_report(load(params), index, labels, segments, results, out, named)


if __name__ == "__main__":
    program("report")
