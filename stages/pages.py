"""Folders with one self-contained HTML page, from a template, and its pictures as PNG files."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cache.store.artefact import replace_folder
from stages.drawing import Picture


def write_page(out: str | Path, template: str, pictures: Iterable[Picture], **shown: Any) -> None:
    """Write ``index.html`` and the pictures; the folder appears complete, replacing a former one.

    The page holds its pictures itself (base64) and refers to nothing outside. Whatever it shows is
    escaped.

    Args:
        template: name of a file in stages/templates.
        pictures: of the page.
        shown: what the template names.
    """
    environment = Environment(
        loader=PackageLoader("stages"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["average"] = statistics.fmean
    page = environment.get_template(template).render(**shown)
    files = {f"{picture.name}.png": picture.png for picture in pictures}
    replace_folder(out, {**files, "index.html": page.encode()})
