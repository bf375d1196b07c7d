"""Walking through folders: which files are photos, and what is passed over."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import features

from cache.images import HEIC, HEIC_SUFFIXES, HEIC_WAY_OUT
from cache.store.errors import InputError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"),
    *((".avif",) if features.check("avif") else ()),
    *(HEIC_SUFFIXES if HEIC else ()),
)
SYSTEM = (
    *("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    *("__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini"),
)
_SHOWN = 10  # names in one line
_OTHERS = "files of other kinds"


class Walk(NamedTuple):
    """The image files below a folder, sorted, and what was passed over, by kind."""

    files: list[Path]
    passed: dict[str, list[str]]

    @property
    def text(self) -> str:
        """One line on what was passed over; "" where that was nothing."""
        parts = [
            f"{kind}: {len(names)} ({some(names)})"
            for kind, names in self.passed.items()
            if kind != _OTHERS
        ]
        if others := self.passed.get(_OTHERS):
            suffixes = Counter(Path(name).suffix.lower() or "no suffix" for name in others)
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common())
            needed = not HEIC and suffixes.keys() & set(HEIC_SUFFIXES)
            parts.append(f"{_OTHERS}: {kinds}{f' ({HEIC_WAY_OUT})' if needed else ''}")
        return f"passed over: {'; '.join(parts)}" if parts else ""


def walk(folder: Path, unwanted: Sequence[Path] = ()) -> Walk:
    """Find the image files below a folder.

    Links to folders are followed once everything else is read, so that a folder that is reached in
    two ways goes by its own name, and each is read once. Hidden files and the folders that systems
    keep beside photos are passed over.

    Args:
        unwanted: files and folders whose images are not meant, without a word.

    Raises:
        InputError: names that cannot be written into a table.
    """
    seen, skipped = set[str](), {os.path.realpath(path) for path in unwanted}
    waiting, links, files = deque([folder]), deque[Path](), list[Path]()
    to: dict[str, deque[Path] | list[Path]] = {"folder": waiting, "link": links, "photo": files}
    passed: dict[str, list[str]] = {}
    while waiting or links:
        here = waiting.popleft() if waiting else links.popleft()
        real, name = os.path.realpath(here), str(here.relative_to(folder))
        if real in skipped:
            continue
        if real in seen:
            passed.setdefault("links to folders that are read anyway", []).append(name)
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            kind = "folders that cannot be opened"
            passed.setdefault(kind, []).append(f"{name}: {error.strerror}")
            continue
        for entry in entries:
            path, kind = here / entry.name, _kind(entry)
            if os.path.join(real, entry.name) in skipped:
                continue
            if kind in to:
                to[kind].append(path)
            elif kind:
                passed.setdefault(kind, []).append(str(path.relative_to(folder)))
    if strange := [str(file) for file in files if unprintable(str(file.relative_to(folder)))]:
        raise InputError(
            f"names of images must be UTF-8 without control characters, found {strange[:_SHOWN]}: "
            "rename them."
        )
    return Walk(sorted(files), passed)


def _kind(entry: os.DirEntry[str]) -> str:
    """Folder, link (to a folder), photo, or why it is none; "" for hidden files of other kinds."""
    is_photo = Path(entry.name).suffix.lower() in SUFFIXES
    is_folder = _is(entry.is_dir)
    if entry.name.startswith(".") or entry.name in SYSTEM:
        if is_folder:
            return "hidden folders or folders of a system"
        return "hidden files" if is_photo else ""
    if is_folder:
        return "link" if entry.is_symlink() else "folder"
    if not os.path.exists(entry.path):
        return "links that lead nowhere"
    if not is_photo or not _is(entry.is_file):
        return _OTHERS
    return "files that are not what their suffix says" if _is_mislabelled(entry.path) else "photo"


def _is(test: Callable[[], bool]) -> bool:
    """Tell whether an entry of a folder is of a kind; a link to itself is of none."""
    try:
        return test()
    except OSError:
        return False


def _is_mislabelled(path: str) -> bool:
    """Tell whether a file of an optional format lacks its signature: it is no damaged photo."""
    if not path.lower().endswith((".avif", *HEIC_SUFFIXES)):
        return False
    try:
        with open(path, "rb") as file:
            return file.read(8)[4:] != b"ftyp"
    except OSError:
        return False  # it is named when it is decoded


def unprintable(name: str) -> bool:
    """Tell whether a name breaks lines, or has bytes that are no UTF-8 (Python's surrogates)."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def some(items: Sequence[object]) -> str:
    """The first of many names or values, and how many more there are."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    names = map(str, items[:_SHOWN])
    return ", ".join(ascii(name) if unprintable(name) else name for name in names) + more
