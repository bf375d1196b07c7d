"""The preset command: a named set of parameters, as options of `dvc exp run`."""

from __future__ import annotations

import re
from typing import Any

import click

from cache import changes, params
from cache.errors import InputError
from stages import Stage

WORD = re.compile(r"[\w./:-]+")  # what neither a shell nor Hydra, which DVC uses, takes apart


@click.command(cls=Stage)
@click.argument("name")
@click.option("--params", "params_path", default="params.yaml", help="Choices.")
@click.option("--presets", "folder", default="presets", help="Folder of the presets.")
def main(name: str, params_path: str, folder: str) -> None:
    """Print the preset NAME as options: `dvc exp run $(eigenseg preset paper)`.

    Reads presets/NAME.yaml, the keys that differ from params.yaml. Writes nothing but one line, and
    that only if params.yaml with these keys is valid.
    """
    found = changes.read_preset(folder, name)
    changes.apply(params.load(params_path), found)
    click.echo(" ".join(f"-S {key}={flow(value)}" for key, value in found.items()))


def flow(value: Any) -> str:
    """A value in the grammar of Hydra's overrides, without spaces or quotes.

    Raises:
        InputError: it is a text that would need them.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(flow, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{flow(key)}:{flow(item)}' for key, item in value.items())}}}"
    text = str(value)
    if not WORD.fullmatch(text):
        raise InputError(
            "to pass through a shell and DVC, a text of a preset must be of letters, digits and "
            f"./:_-, found {value!r}: write it into params.yaml by hand."
        )
    return text


if __name__ == "__main__":
    main()
