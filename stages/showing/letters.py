"""A word about names that pictures cannot show."""

from __future__ import annotations

from collections.abc import Sequence

import click

from pipeline.drawing.lettering import unshown


def tell_unshown(names: Sequence[str]) -> None:
    """Say which letters of the names no font has; they are boxes in legends and charts."""
    if letters := unshown(names):
        click.echo(
            f"no font here has the letters {letters}: legends and charts show boxes. Install one "
            "that has them, such as Noto Sans CJK.",
            err=True,
        )
