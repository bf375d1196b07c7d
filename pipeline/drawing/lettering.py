"""Fonts for names in any script: DejaVu, which comes with Matplotlib, then those of the system."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import groupby

import matplotlib
from matplotlib.ft2font import FT2Font

DEJAVU = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"  # Latin, Greek, Cyrillic, ...


def runs(text: str) -> list[tuple[str, str]]:
    """Split a text into parts of one font: each part and the path of its font."""
    return [("".join(part), path) for path, part in groupby(text, _font_of)]


def families(texts: Sequence[str]) -> list[str]:
    """Families for Matplotlib, which takes each letter from the first that has it."""
    paths = dict.fromkeys([DEJAVU, *(path for text in texts for _, path in runs(text))])
    return [FT2Font(path).family_name for path in paths]


def unshown(texts: Sequence[str]) -> str:
    """The letters that no font at hand has, each once: pictures show boxes for them."""
    letters = dict.fromkeys(letter for text in texts for letter in text if not letter.isspace())
    return "".join(letter for letter in letters if ord(letter) not in _letters(_font_of(letter)))


@cache
def _font_of(letter: str) -> str:
    if letter.isspace() or ord(letter) in _letters(DEJAVU):
        return DEJAVU
    return next((path for path in _system() if ord(letter) in _letters(path)), DEJAVU)


@cache
def _letters(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except RuntimeError:  # FreeType cannot read it
        return frozenset()


@cache
def _system() -> tuple[str, ...]:
    from matplotlib.font_manager import findSystemFonts  # looks through folders when imported

    return tuple(sorted(findSystemFonts()))
