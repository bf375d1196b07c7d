"""Answers of former checks of files: a file that is as it was is not read again.

They lie in a file beside the index, which is no output of the stage: DVC would delete it before
each run, and carry one machine's inodes and times to another. Without it, or where it is damaged,
everything is checked again. Files that were found bad are never in it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import PIL

from cache.store.artefact import file_hash, fingerprint
from cache.store.errors import InputError
from cache.store.tables import read_table, write_table

MARGIN = 2_000_000_000  # ns: the clock of FAT, the coarsest of the file systems, ticks every 2 s
_COLUMNS = ("check", "path", "arguments", "state", "answer")

Check = TypeVar("Check", bound=Callable[..., Any])


class CheckedFiles:
    """Answers of checks of files, read at the start of a ``with`` block and written at its end.

    They are written after an error too, so that good files are not read again once the bad ones
    are mended. On a full disk they are left out.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._made_by = _checks()
        try:
            rows, made_by = read_table(path, _COLUMNS, "")
        except (InputError, OSError):
            rows, made_by = [], ""
        self._known = {tuple(row[:3]): tuple(row[3:]) for row in rows}
        if made_by != self._made_by:
            self._known = {}

    def __enter__(self) -> CheckedFiles:
        return self

    def __exit__(self, *_: object) -> None:
        # Answers on other files, such as another data set's, stay too.
        rows = [(*key, *entry) for key, entry in self._known.items() if os.path.exists(key[1])]
        with suppress(OSError):
            write_table(self._path, _COLUMNS, rows, self._made_by)

    def once(self, check: Check) -> Check:
        """Wrap a check: it is left out for files that it has found good before.

        Args:
            check: takes the path of a file and JSON-able arguments. Its answer depends on these,
                the file's bytes and the sources of `cache` alone, and is JSON-able (a tuple comes
                back as a list); a bad file raises an error.
        """

        def checked(path: str | Path, *arguments: Any) -> Any:
            key = (check.__name__, str(path), json.dumps(arguments))
            state, settled = _state(path)  # before the file is read: a change meanwhile shows
            before, answer = self._known.pop(key, ("", ""))
            if not settled or before != state:
                answer = json.dumps(check(path, *arguments))
            if settled:
                self._known[key] = (state, answer)
            return json.loads(answer)

        return checked  # type: ignore[return-value]


def _state(path: str | Path) -> tuple[str, bool]:
    """Give what changes with a file's bytes, and whether any later change will show in it.

    Tools can put the time of modification back, but not the time of change. Two changes within one
    tick of the clock look like one, so only a file that was left alone for a while is settled (Git
    calls the others racily clean).
    """
    try:
        found = os.stat(path)
    except OSError:
        return "", False
    times = (found.st_mtime_ns, found.st_ctime_ns)
    state = ":".join(map(str, (found.st_size, *times, found.st_ino)))
    return state, max(times) + MARGIN < time.time_ns()


def _checks() -> str:
    """Make a fingerprint of all that decodes and checks: Pillow, sources and tables of `cache`."""
    here = Path(__file__).parent
    files = sorted(path for kind in ("*.py", "*.tsv") for path in here.rglob(kind))
    return fingerprint(PIL.__version__, [(str(f.relative_to(here)), file_hash(f)) for f in files])
