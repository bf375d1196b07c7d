"""Names of photos in folders that several runs write to: one photo never takes another's.

``photos.csv`` in such a folder lists what each name stands for: the file's SHA-256 and its place.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cache.photos import Photo
from cache.predictions import RECORD
from cache.store.artefact import file_hash
from cache.store.errors import InputError
from cache.store.tables import read_table, write_table
from cache.walk import unprintable

_HEADER = ("photo", "sha256", "path")
_ROOM = 245  # bytes of a name; file systems have 255, a suffix among them


def claim(folders: Mapping[str, str], photos: Sequence[Photo]) -> list[Photo]:
    """Give each photo a name that no other one has in any of the folders, and write that down.

    A name is taken where its label is there, or was given to another photo in this call. A photo is
    told by its content and its place; moved, it stays the same. The second of a name gets the first
    digits of its SHA-256 behind it. Case and the spelling of accents make no difference: there are
    file systems that do not keep them apart.

    Args:
        folders: where labels lie below each folder, by the folder.

    Returns:
        The photos in their order, with their names.
    """
    with ExitStack() as stack:
        for folder in sorted(folders):
            stack.enter_context(_locked(Path(folder)))
        records = {folder: _read(Path(folder)) for folder in folders}
        given: dict[str, tuple[str, str]] = {}
        found = []
        for photo in photos:
            place = os.path.abspath(photo.path)
            who = (_content(photo.path), place)
            for name in _candidates(photo.name, who):
                key = _key(name)
                holders = [given[key]] if key in given else _holders(folders, records, name)
                if all(_same(who, holder) for holder in holders):
                    break
            given[key] = who
            found.append(photo._replace(name=name))
            for record in records.values():
                record[key] = (name, *who)
        for folder, record in records.items():
            write_table(Path(folder) / RECORD, _HEADER, sorted(map(_plain, record.values())), "")
    return found


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # two runs at once do not give one name twice
        yield
    finally:
        os.close(descriptor)


def _read(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Name, hash and place by key; where the record is missing or damaged, labels are nobody's."""
    try:
        rows, _ = read_table(folder / RECORD, _HEADER, "")
    except InputError:
        return {}
    return {_key(name): (name, digest, place) for name, digest, place in rows}


def _holders(
    folders: Mapping[str, str], records: Mapping[str, dict[str, tuple[str, str, str]]], name: str
) -> list[tuple[str, str]]:
    """Return whose labels of this name are there: hash and place, or nobody's."""
    found = []
    for folder, labels in folders.items():
        held, digest, place = records[folder].get(_key(name), (name, "", ""))
        if os.path.exists(Path(folder) / labels / f"{held}.png"):
            found.append((digest, place))
    return found


def _same(who: tuple[str, str], holder: tuple[str, str]) -> bool:
    return who == holder or (who[0] == holder[0] and not os.path.exists(holder[1]))


def _content(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError:
        return hashlib.sha256(os.fsencode(path)).hexdigest()  # it is named when it is decoded


def _candidates(name: str, who: tuple[str, str]) -> Iterator[str]:
    clean = "".join("_" if unprintable(character) else character for character in name)
    *above, last = clean.split("/")
    if clean == name and len(last.encode()) <= _ROOM:
        yield clean
    tags = hashlib.sha256("\n".join(who).encode("utf-8", "backslashreplace")).hexdigest()
    for tag in (who[0][:8], who[0], tags):
        cut = last.encode()[: _ROOM - len(tag) - 1].decode(errors="ignore")
        yield "/".join([*above, f"{cut}-{tag}"])


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _plain(row: tuple[str, str, str]) -> tuple[str, ...]:
    return tuple(text.encode("utf-8", "backslashreplace").decode() for text in row)
