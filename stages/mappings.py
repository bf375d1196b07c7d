"""The mapping from clusters to classes that evaluation left, for label maps of new images."""

from __future__ import annotations

import click
from click.core import ParameterSource

from cache import results as store
from cache.store.errors import InputError


def find_mapping(path: str, head: str) -> store.ClassMapping | None:
    """The mapping from clusters to classes, None for cluster ids.

    Raises:
        InputError: the mapping that was asked for is missing or belongs to another head. The
            default one may be so: that is said and cluster ids are written.
    """
    if path == "none":
        return None
    try:
        mapping = next(iter(store.read_mappings(path).values()))
        if mapping.head != head:
            raise InputError(
                f"{path} must belong to this head ({head}), found the mapping of {mapping.head}: "
                "run `eigenseg eval` (or `dvc repro eval`) with this head."
            )
        if mapping.fitted_on is None:
            raise InputError(f"{path} must name classes, found none: there were no labels.")
    except InputError as error:
        given = click.get_current_context().get_parameter_source("mapping")
        if given is not ParameterSource.DEFAULT:
            raise InputError(f"{error} `--mapping none` writes cluster ids.") from error
        click.echo(f"{error} Cluster ids are written instead of classes.", err=True)
        return None
    return mapping
