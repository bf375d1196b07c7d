"""The charts and pictures of the report: arrays in, PNG out."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from pipeline.drawing.lettering import families

_LINE = "#2f6fb7"
_FILLS = ("#2f6fb7", "#e08a3c", "#9aa3ad")


class Picture(NamedTuple):
    """A PNG; ``name`` becomes its file name, and ``caption`` stands below it."""

    name: str
    caption: str
    png: bytes

    @property
    def base64(self) -> str:
        """The PNG as a page holds it."""
        return base64.b64encode(self.png).decode("ascii")


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


def sweep_chart(values: Sequence[str], miou: Mapping[str, Sequence[Sequence[float]]]) -> bytes:
    """Draw the mIoU against the values of one parameter as PNG: a dot each, lines the means.

    Values stand at equal distances, for most are chosen in ratios and some are no numbers.

    Args:
        values: of the parameter, in order.
        miou: by predictor, for each value the mIoU of every experiment, in percent.
    """
    figure, axes = _chart(4.2, 2.9)
    places = range(len(values))
    for (name, runs), fill in zip(miou.items(), cycle(_FILLS), strict=False):
        axes.plot(places, [np.mean(run) for run in runs], color=fill, linewidth=1.4, label=name)
        repeated = np.repeat(places, [len(run) for run in runs])
        axes.scatter(repeated, np.concatenate(runs), 12, color=fill, alpha=0.6, linewidths=0)
    axes.set_xticks(places, values, fontsize=8)
    axes.set_xlim(-0.5, len(values) - 0.5)
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
    texts: list[Text] = figure.findobj(Text)  # type: ignore[assignment]
    fonts = families([text.get_text() for text in texts])
    for text in texts:
        text.set_parse_math(False)  # a name of a class may hold dollars
        text.set_fontfamily(fonts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the stage has said which letters are missing
        # Without matplotlib's version in it, the same values give the same bytes for DVC.
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
