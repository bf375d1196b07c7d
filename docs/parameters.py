"""The reference page of params.yaml, from its comments and its schema."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from stages.settings.params import Params

ENTRIES = ("datasets", "backbones", "protocols")  # sections of entries with names of one's own
LARGE = 1_000_000  # bounds from here on are there to catch typing errors
LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*?)\s*(?:#\s*(?P<comment>.*))?$")


class Key(NamedTuple):
    """A documented key: its dotted name, its default as YAML, what it may be, what it means."""

    name: str
    default: str
    allowed: str
    meaning: str


def page(text: str) -> str:
    """Write the reference page as Markdown.

    Args:
        text: of params.yaml.
    """
    parts = ["# Parameters", INTRODUCTION]
    keys = [*commented(text), *described()]
    for section in dict.fromkeys(key.name.split(".")[0] for key in keys if "." in key.name):
        found = [key for key in keys if key.name.startswith(f"{section}.")]
        parts += [f"## {section}", *filter(None, [heading(text, section)]), table(found)]
    alone = table([key for key in keys if "." not in key.name])
    return "\n\n".join([*parts[:2], alone, *parts[2:]]) + "\n"


INTRODUCTION = """\
Change one for a run with `dvc exp run -S key=value`. An unknown key or a wrong value is refused
before any work starts. "The paper" is Deng & Luo, ICCV 2023; "the program" is the authors' released
program where the paper is silent. px are pixels of the resized image."""


def table(keys: list[Key]) -> str:
    """Lay out keys as a Markdown table."""
    head = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    rows = [f"| `{k.name}` | `{k.default}` | {k.allowed} | {k.meaning} |" for k in keys]
    return "\n".join([*head, *(row.replace("``", "") for row in rows)])


def commented(text: str) -> Iterator[Key]:
    """Find the keys that stand alone on a line, with the comments beside and below them."""
    schema = Params.model_json_schema()
    path: list[str] = []
    comments = dict(_comments(text))
    for line in text.splitlines():
        if found := LINE.match(line):
            path = [*path[: len(found["indent"]) // 2], found["key"]]
            name, value = ".".join(path), found["value"].strip()
            if value and path[0] not in ENTRIES:
                allowed = kind(at(schema, path), schema)
                yield Key(name, value, allowed, _cell(comments.get(name, "")))


def described() -> Iterator[Key]:
    """Find the keys of data sets, backbones and protocols, which the schema describes."""
    schema = Params.model_json_schema()
    for section in ENTRIES:
        entry = resolve(at(schema, [section])["additionalProperties"], schema)
        for key, value in entry["properties"].items():
            default = yaml.safe_dump(value["default"]).split("\n")[0] if "default" in value else ""
            meaning = _cell(value.get("description", ""))
            yield Key(f"{section}.<name>.{key}", default, kind(value, schema), meaning)


def heading(text: str, section: str) -> str:
    """Give the comment of a section."""
    comment = dict(_comments(text)).get(section, "")
    return f"{comment[:1].upper()}{comment[1:]}.".replace("<", "&lt;") if comment else ""


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """Give every key's comment, which goes on in the lines below that hold a comment alone."""
    path: list[str] = []
    said: list[str] = []
    for line in text.splitlines():
        if found := LINE.match(line):
            if said:
                yield ".".join(path), " ".join(said)
            path = [*path[: len(found["indent"]) // 2], found["key"]]
            said = [found["comment"]] if found["comment"] else []
        elif re.match(r" +#", line) and path:
            said.append(line.strip(" #"))
        elif said:
            yield ".".join(path), " ".join(said)
            said = []
    if said:
        yield ".".join(path), " ".join(said)


def at(schema: Mapping[str, Any], path: list[str]) -> Mapping[str, Any]:
    """Give the schema of a dotted key."""
    found = schema
    for key in path:
        found = resolve(found, schema)["properties"][key]
    return resolve(found, schema)


def resolve(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a reference into the definitions of a JSON schema."""
    if "$ref" not in part:
        return part
    return {**schema["$defs"][part["$ref"].rsplit("/", 1)[1]], **part, "$ref": ""}


def kind(part: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Say in words which values a JSON schema allows."""
    part = part if part.get("$ref") == "" else resolve(part, schema)
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(kind(one, schema) for one in part["anyOf"]))
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    if part.get("type") == "array":
        return f"list of {kind(part['items'], schema)}"
    if part.get("type") in ("integer", "number"):
        return _range(part)
    if "pattern" in part:
        return "`" + part["pattern"].strip("^$()").replace("|", "`, `").replace(".+", "…") + "`"
    return {"boolean": "`true`, `false`", "null": "`null`", "string": "text"}.get(
        part.get("type", ""), "mapping"
    )


def _range(part: Mapping[str, Any]) -> str:
    noun = {"integer": "integer", "number": "number"}[part["type"]]
    low = part.get("minimum", part.get("exclusiveMinimum"))
    high = part.get("maximum", part.get("exclusiveMaximum"))
    high = None if high is not None and high >= LARGE else high
    bounds = [
        f"{'above' if 'exclusiveMinimum' in part else 'from'} {low}" if low is not None else "",
        f"{'below' if 'exclusiveMaximum' in part else 'to'} {high}" if high is not None else "",
    ]
    return " ".join([noun, *filter(None, bounds)])


def _cell(text: str) -> str:
    """Escape what would end a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
