"""The report folder: one self-contained HTML page and its pictures as PNG files."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cache.store.artefact import publish, write_text

_TEMPLATE = Path(__file__).with_name("report.html")
_LINE = "#2f6fb7"
_FILLS = ("#2f6fb7", "#e08a3c", "#9aa3ad")
_COLUMNS = '<th class="first">mIoU</th><th>accuracy</th><th>classes</th>'


class Picture(NamedTuple):
    """A PNG; ``name`` becomes its file name, and ``caption`` stands below it."""

    name: str
    caption: str
    png: bytes


class Example(NamedTuple):
    """One image of the gallery: label maps, and eigenfunctions in a second row."""

    title: str
    maps: list[Picture]
    eigenfunctions: list[Picture]


class Point(NamedTuple):
    """One value of a varied parameter: mIoU of every seed, by matching and predictor.

    ``default`` marks the value that params.yaml has.
    """

    value: str
    default: bool
    miou: Mapping[str, Mapping[str, Sequence[float]]]


class Page(NamedTuple):
    """All that the page shows; a section without content is left out.

    Attributes:
        title: heading.
        facts: what was run, by name.
        metrics: as in metrics.json.
        origins: heading of each kind of mapping in the metrics, by its key there.
        score_notes: how to read the scores, one paragraph each.
        charts: drawings of the classes.
        chart_note: how to read them.
        curves: drawings of the training.
        ablations: the points of each varied parameter, by its name.
        ablation_charts: drawings of them.
        ablation_note: how to read them.
        legend: class names and their uint8 ``(3,)`` colours.
        gallery_note: how to read the gallery.
        gallery: the images.
    """

    title: str
    facts: Mapping[str, object]
    metrics: Mapping[str, Mapping[str, Any]]
    origins: Mapping[str, str]
    score_notes: Sequence[str]
    charts: Sequence[Picture]
    chart_note: str
    curves: Sequence[Picture]
    ablations: Mapping[str, Sequence[Point]]
    ablation_charts: Sequence[Picture]
    ablation_note: str
    legend: Sequence[tuple[str, np.ndarray]]
    gallery_note: str
    gallery: Sequence[Example]


def encode(image: np.ndarray, width: int, height: int, smooth: bool) -> bytes:
    """Resize an image and encode it as PNG.

    Args:
        image: uint8 ``(H, W, 3)``.
        width: pixels.
        height: pixels.
        smooth: average and interpolate; otherwise take the nearest pixel.
    """
    method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    buffer = io.BytesIO()
    Image.fromarray(image).resize((width, height), method).save(buffer, "PNG")
    return buffer.getvalue()


def curve_chart(steps: np.ndarray, values: np.ndarray) -> bytes:
    """Draw one column of the training curve, float64 ``(n,)`` each, as PNG."""
    figure, axes = _chart(4.2, 2.5)
    axes.plot(steps, values, color=_LINE, linewidth=1.2)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    return _png(figure)


def confusion_chart(matrix: np.ndarray, classes: Sequence[str]) -> bytes:
    """Draw a confusion matrix as PNG: each row in percent of the true class's pixels.

    Args:
        matrix: int64 ``(C, C + 1)``; the last column (unmatched) is shown where it isn't empty.
        classes: the C names.
    """
    columns = [*classes, "unmatched"] if matrix[:, -1].any() else list(classes)
    share = 100.0 * matrix[:, : len(columns)] / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    small = len(classes) <= 15
    size = 1.8 + (0.42 if small else 0.16) * len(classes)
    figure, axes = _chart(max(size + 0.6, 4.0), max(size, 3.2))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    font = 8 if small else 6
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=font)
    axes.set_yticks(range(len(classes)), list(classes), fontsize=font)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for (row, column), value in np.ndenumerate(share):
        if small and value >= 0.5:
            ink = "white" if value > 60 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=ink)
    return _png(figure)


def iou_chart(ious: Mapping[str, np.ndarray], classes: Sequence[str]) -> bytes:
    """Draw the IoU of every class as PNG, one bar per predictor; absent classes are left out.

    Args:
        ious: float64 ``(C,)`` percent by predictor, NaN where the class is absent.
        classes: the C names.
    """
    present = np.flatnonzero(~np.isnan(np.stack(list(ious.values()))).all(axis=0))
    figure, axes = _chart(6.0, 1.2 + 0.13 * (len(ious) + 1) * len(present))
    thick = 0.84 / len(ious)
    for i, ((name, values), fill) in enumerate(zip(ious.items(), cycle(_FILLS), strict=False)):
        places = np.arange(len(present)) + (i - (len(ious) - 1) / 2) * thick
        axes.barh(places, values[present], height=0.9 * thick, color=fill, label=name)
    axes.set_yticks(range(len(present)), [classes[int(c)] for c in present], fontsize=8)
    axes.set_ylim(len(present) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("IoU, %")
    axes.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=len(ious), fontsize=8, frameon=False)
    return _png(figure)


def ablation_chart(points: Sequence[Point], matching: str) -> bytes:
    """Draw the mIoU against the values of one parameter as PNG: each seed a dot, lines the means.

    Values stand at equal distances, for most are chosen in ratios and some are no numbers. The
    default one is shaded.
    """
    figure, axes = _chart(4.2, 2.9)
    places = range(len(points))
    for name, fill in zip(points[0].miou[matching], cycle(_FILLS), strict=False):
        seeds = [point.miou[matching][name] for point in points]
        axes.plot(
            places, [np.mean(values) for values in seeds], color=fill, linewidth=1.4, label=name
        )
        repeated = np.repeat(places, [len(values) for values in seeds])
        axes.scatter(repeated, np.concatenate(seeds), 12, color=fill, alpha=0.6, linewidths=0)
    for place in (i for i, point in enumerate(points) if point.default):
        axes.axvspan(place - 0.15, place + 0.15, color="#000000", alpha=0.07, linewidth=0)
    axes.set_xticks(places, [point.value for point in points], fontsize=8)
    axes.set_xlim(-0.5, len(points) - 0.5)
    axes.set_ylabel("mIoU, %")
    axes.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return _png(figure)


def _chart(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without matplotlib's version in it, the same values give the same bytes for DVC.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def write_report(out: str | Path, page: Page) -> None:
    """Write ``index.html`` and the pictures; the folder appears complete, replacing a former one.

    The page holds its pictures itself (base64) and refers to nothing outside.
    """
    out = Path(out)
    work = out.with_name(f".{out.name}.partial")
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    for picture in _pictures(page):
        (work / f"{picture.name}.png").write_bytes(picture.png)
    write_text(work / "index.html", _html(page))
    publish(work, out)


def _pictures(page: Page) -> Iterable[Picture]:
    yield from page.charts
    yield from page.curves
    yield from page.ablation_charts
    for example in page.gallery:
        yield from example.maps
        yield from example.eigenfunctions


def _html(page: Page) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in page.facts.items()
    )
    scores = _table(page.metrics, page.origins) + _paragraphs(page.score_notes)
    charts = _grid("charts", page.charts)
    ablations = _grid("panels", page.ablation_charts) + _ablation_table(page.ablations)
    gallery = "".join(
        f"<h3>{escape(example.title)}</h3>"
        + _grid("maps", example.maps)
        + _grid("functions", example.eigenfunctions)
        for example in page.gallery
    )
    sections = [
        _section("Scores", scores),
        _section("Gallery", _paragraphs([page.gallery_note]) + _legend(page.legend) + gallery),
        _section("Classes", _paragraphs([page.chart_note]) + charts) if charts else "",
        _section("Training", _grid("curves", page.curves)),
        _section("Ablations", _paragraphs([page.ablation_note]) + ablations) if ablations else "",
    ]
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(page.title), facts=facts, sections="\n".join(filter(None, sections))
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>"


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def _grid(kind: str, pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    return f'<div class="grid {kind}">{"".join(_figure(picture) for picture in pictures)}</div>'


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    caption = escape(picture.caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def _legend(entries: Sequence[tuple[str, np.ndarray]]) -> str:
    items = "".join(
        f'<li><i style="background:rgb({",".join(map(str, rgb))})"></i>{escape(name)}</li>'
        for name, rgb in entries
    )
    return f'<ul class="legend">{items}</ul>' if entries else ""


def _table(metrics: Mapping[str, Mapping[str, Any]], origins: Mapping[str, str]) -> str:
    """Predictors and matchings down, kinds of mapping across; the best of each matching is bold."""
    groups = "".join(
        f'<th class="group" colspan="3">{escape(heading)}</th>' for heading in origins.values()
    )
    matching = '<th class="text" rowspan="2">matching</th>' if origins else ""
    rows = "".join(_rows(name, entry, metrics, origins) for name, entry in metrics.items())
    return (
        '<div class="scroll"><table><thead><tr><th class="text" rowspan="2">predictor</th>'
        '<th rowspan="2">K</th><th rowspan="2">in use</th>'
        f"{matching}{groups}</tr><tr>{_COLUMNS * len(origins)}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _rows(
    name: str,
    entry: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, Any]],
    origins: Mapping[str, str],
) -> str:
    head = f'<td class="text">{escape(name)}</td>'
    head += f"<td>{entry['k']}</td><td>{entry['clusters_used']}</td>"
    matchings = [key for key, value in entry.items() if isinstance(value, Mapping)]
    if not matchings:
        return f"<tr{_class(start=True)}>{head}</tr>"
    rows = []
    for matching in matchings:
        rivals = [other[matching] for other in metrics.values()]
        cells = "".join(_cells(entry[matching][key], [r[key] for r in rivals]) for key in origins)
        start = _class(start=matching == matchings[0])
        rows.append(f'<tr{start}>{head}<td class="text">{escape(matching)}</td>{cells}</tr>')
        head = "<td></td>" * 3
    return "".join(rows)


def _cells(score: Mapping[str, Any], rivals: Sequence[Mapping[str, Any]]) -> str:
    best = [score[key] == max(rival[key] for rival in rivals) for key in ("miou", "accuracy")]
    return (
        f"<td{_class(first=True, best=best[0])}>{score['miou']:.1f}</td>"
        f"<td{_class(best=best[1])}>{score['accuracy']:.1f}</td>"
        f"<td>{score['classes_covered']}</td>"
    )


def _ablation_table(ablations: Mapping[str, Sequence[Point]]) -> str:
    """Parameters and values down, matchings and predictors across; the best of each is bold."""
    if not ablations:
        return ""
    first = next(iter(ablations.values()))[0].miou
    groups = "".join(
        f'<th class="group" colspan="{len(names)}">{escape(matching)}</th>'
        for matching, names in first.items()
    )
    columns = "".join(
        f"<th{_class(first=not i)}>{escape(name)}</th>"
        for names in first.values()
        for i, name in enumerate(names)
    )
    rows = "".join(
        f'<tr{_class(start=not i)}><td class="text">{"" if i else escape(name)}</td>'
        f'<td class="text">{escape(point.value)}{" (default)" if point.default else ""}</td>'
        + "".join(map(_means, point.miou.values()))
        + "</tr>"
        for name, points in ablations.items()
        for i, point in enumerate(points)
    )
    return (
        '<div class="scroll"><table><thead><tr><th class="text" rowspan="2">parameter</th>'
        f'<th class="text" rowspan="2">value</th>{groups}</tr><tr>{columns}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _means(miou: Mapping[str, Sequence[float]]) -> str:
    """Cells of one matching: the mean of the seeds and, of several, max - min in brackets."""
    means = [float(np.mean(seeds)) for seeds in miou.values()]
    spreads = [f" ({np.ptp(seeds):.1f})" if len(seeds) > 1 else "" for seeds in miou.values()]
    return "".join(
        f"<td{_class(first=not i, best=mean == max(means))}>{mean:.1f}{spread}</td>"
        for i, (mean, spread) in enumerate(zip(means, spreads, strict=True))
    )


def _class(**on: bool) -> str:
    names = " ".join(name for name, wanted in on.items() if wanted)
    return f' class="{names}"' if names else ""
