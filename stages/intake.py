"""What is said of new photos before any is segmented."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cache.images import find_white, survey
from cache.photos import Photo
from cache.walk import some


def settle(photos: Sequence[Photo], white: float | None, notes: Sequence[str]) -> float | None:
    """Say what was passed over, and give the white of photos of more than 8 bits.

    Args:
        white: that of the photos that the head was trained on; None where these had 8 bits.
    """
    deep, several = survey(photo.path for photo in photos)
    for note in notes:
        click.echo(note, err=True)
    if several:
        names = some([str(path) for path in several])
        click.echo(f"of several pages or frames the first is read: {names}", err=True)
    if not deep:
        return white
    found = white or find_white(deep)
    source = "as in training" if white else "from the greatest value in them"
    click.echo(
        f"{len(deep)} photos of more than 8 bits are read with white = {found:g}, {source}",
        err=True,
    )
    return found
