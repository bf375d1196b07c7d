"""Legends: names beside their colours, as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.drawing.lettering import runs

_ROW, _TEXT = 24, 15  # px: height of a row, and of its letters


def legend(names: Sequence[str], colours: np.ndarray) -> np.ndarray:
    """Draw a column of names: uint8 ``(H, W, 3)``.

    Args:
        colours: uint8 ``(names, 3)``.
    """
    lines = [
        [(text, ImageFont.truetype(path, _TEXT)) for text, path in runs(name)] for name in names
    ]
    width = 2 * _ROW + max(int(sum(font.getlength(text) for text, font in line)) for line in lines)
    picture = Image.new("RGB", (width, _ROW * len(names)), "white")
    draw = ImageDraw.Draw(picture)
    for row, (line, colour) in enumerate(zip(lines, colours.tolist(), strict=True)):
        top, left = row * _ROW, float(_ROW + 4)
        draw.rectangle((4, top + 4, _ROW - 4, top + _ROW - 4), fill=tuple(colour))
        for text, font in line:
            draw.text((left, top + _ROW // 2), text, "black", font, anchor="lm")
            left += font.getlength(text)
    return np.asarray(picture)
