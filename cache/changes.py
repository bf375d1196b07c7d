"""Changes to params.yaml, by dotted key: presets, and the one setting of an ablation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cache.artefact import write_text
from cache.errors import InputError
from cache.params import Params, parse

Changes = dict[str, Any]
"""Values by dotted key, such as ``{"graph.alpha": 0.3}``."""


def read_preset(folder: str | Path, name: str) -> Changes:
    """The changes of a preset, a file ``<name>.yaml`` that is nested like params.yaml.

    Raises:
        InputError: there is no such preset, or it is no YAML mapping.
    """
    presets = {path.stem: path for path in sorted(Path(folder).glob("*.yaml"))}
    if name not in presets:
        raise InputError(
            f"the preset must be one of {', '.join(presets) or 'none'} (files *.yaml in {folder}), "
            f"found {name!r}: name one of them, in the project's folder or with --presets."
        )
    path = presets[name]
    try:
        tree = parse(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} must hold keys of params.yaml and their values, found {tree!r}.")
    return _leaves(tree)


def parse_setting(text: str) -> Changes:
    """The change that ``key=value`` asks for; the value is YAML.

    Raises:
        InputError: it is written otherwise.
    """
    key, equals, value = text.partition("=")
    try:
        if equals:
            return {key: parse(value)}
    except yaml.YAMLError:
        pass
    raise InputError(f"a setting must be key=value, such as graph.alpha=0.3, found {text!r}.")


def look_up(chosen: Params, key: str) -> Any:
    """The value of a dotted key.

    Raises:
        InputError: there is no such key.
    """
    node: Any = chosen.model_dump()
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            valid = f"; valid here: {', '.join(node)}" if isinstance(node, dict) else ""
            raise InputError(f"{key}: unknown key of params.yaml, found {part!r}{valid}.")
        node = node[part]
    return node


def apply(chosen: Params, changes: Changes) -> Params:
    """The parameters with these changes, checked as params.yaml is.

    Raises:
        InputError: a key is unknown or a value is wrong.
    """
    tree = chosen.model_dump()
    for key, value in changes.items():
        look_up(chosen, key)
        *above, last = key.split(".")
        node = tree
        for part in above:
            node = node[part]
        node[last] = value
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, found {fault['input']!r}"
            for fault in error.errors(include_url=False)
        ]
        asked = ", ".join(f"{key}={value}" for key, value in changes.items())
        raise InputError(
            f"params.yaml with {asked} has faults:\n  " + "\n  ".join(faults)
        ) from error


def write_params(path: str | Path, chosen: Params) -> None:
    """Write parameters as a params.yaml, for stages to read."""
    write_text(path, yaml.safe_dump(chosen.model_dump(), sort_keys=False))


def _leaves(tree: Mapping[str, Any], above: str = "") -> Changes:
    found: Changes = {}
    for name, value in tree.items():
        deeper = isinstance(value, dict)
        found |= _leaves(value, f"{above}{name}.") if deeper else {f"{above}{name}": value}
    return found
