"""Folders of self-contained HTML pages, from templates, and their pictures as PNG files."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cache.store.artefact import replace_folder
from stages.showing.drawing import Picture


def write_pages(
    out: str | Path, pages: Mapping[str, Iterable[bytes]], pictures: Iterable[Picture]
) -> None:
    """Write a folder of pages, by file name and in pieces, and pictures.

    It appears complete, replacing a former one.
    """
    files = {f"{picture.name}.png": [picture.png] for picture in pictures}
    replace_folder(out, {**files, **pages})


def render(template: str, **shown: Any) -> Iterator[bytes]:
    """A page that holds its pictures itself (base64) and refers to nothing outside, in pieces.

    Whatever it shows is escaped. A page of thousands of photos is never in memory as a whole.

    Args:
        template: name of a file in stages/showing/templates.
        shown: what the template names.
    """
    environment = Environment(
        loader=PackageLoader("stages.showing"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["average"] = statistics.fmean
    return (piece.encode() for piece in environment.get_template(template).generate(**shown))
