"""CSV tables with a digest and the fingerprint of their source in the last row, the seal."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from cache.store.artefact import write_output
from cache.store.errors import InputError

_SEAL = "seal"


def encode(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Encode CSV with a header; lines end in a line feed."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def write_table(
    path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]], made_from: str
) -> None:
    """Write a header, the rows, and ``seal,<made_from>,<SHA-256 of all before it>``.

    Args:
        made_from: fingerprint of the source; empty where there is none.
    """
    text = encode(header, rows) + f"{_SEAL},{made_from},"
    write_output(path, f"{text}{hashlib.sha256(text.encode()).hexdigest()}\n")


def read_table(path: str | Path, header: Sequence[str], way_out: str) -> tuple[list, str]:
    """Read the rows (lists of texts) of `write_table` and the fingerprint of their source.

    Raises:
        InputError: the file is missing, or not what was written; the text ends with ``way_out``.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: {way_out}") from error
    end = content.rfind(b",") + 1
    if content[end:].decode(errors="replace") != hashlib.sha256(content[:end]).hexdigest() + "\n":
        raise InputError(f"{path} is not as it was written (its SHA-256 differs): {way_out}")
    first, *rows, (_, made_from, _) = csv.reader(io.StringIO(content.decode(), newline=""))
    if tuple(first) != tuple(header):
        raise InputError(f"{path} must have the columns {', '.join(header)}: {way_out}")
    return rows, made_from
