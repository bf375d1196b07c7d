"""Artefacts that are complete or absent: fingerprints, locked work folders, atomic publishing.

DVC deletes a stage's outputs before it runs the stage, so unfinished work is kept beside them, in
``<data>/.work/<name>-<fingerprint>``, and moved to its place when it is whole. The fingerprint
covers everything the result depends on: other images, weights or parameters get another folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from cache.store.errors import InputError


def fingerprint(*parts: Any) -> str:
    """Hash JSON-able values to 16 hex digits; equal values give equal fingerprints."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: str | Path) -> str:
    """Hash a file's bytes by SHA-256, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def work_folder(out: str | Path, fingerprint: str) -> Iterator[Path]:
    """Give the locked folder in which the artefact ``out`` of this fingerprint is made.

    It survives failures and kills, so that the next run goes on, and is removed when the block ends
    without an error: by then `publish` has moved the artefact to its place.

    Raises:
        InputError: another process is at work on the same artefact.
    """
    out = Path(out)
    folder = out.parent / ".work" / f"{out.name}-{fingerprint}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock_path = folder.with_name(folder.name + ".lock")
    with open(lock_path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.stat(lock.fileno()).st_nlink  # 0: its former holder has just finished
        except OSError:
            held = 0
        if not held:
            raise InputError(
                f"{out} is being made by another process, which holds {lock.name}. "
                "Wait for it or stop it (a killed `dvc` leaves its stage running)."
            )
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder)
        lock_path.unlink()
    if left := size(folder.parent):
        print(
            f"{folder.parent} holds {left / 1e6:.1f} MB of unfinished work of other settings: "
            f"`rm -r {folder.parent}` frees them, when no stage runs.",
            file=sys.stderr,
        )


def publish(work: str | Path, out: str | Path) -> None:
    """Move a finished file or folder to its place; a former one there is removed first."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir():
        shutil.rmtree(out)
    os.replace(work, out)


def replace_folder(out: str | Path, files: Mapping[str, Iterable[bytes]]) -> None:
    """Write a folder of files by way of a temporary one, so that it appears complete.

    Args:
        files: content by name, in pieces.
    """
    out = Path(out)
    work = out.with_name(f".{out.name}.partial")
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    for name, pieces in files.items():
        with open(work / name, "wb") as file:
            file.writelines(pieces)
    publish(work, out)


def size(path: str | Path) -> int:
    """Count the bytes of a file, or of all files below a folder."""
    path = Path(path)
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def free_bytes(folder: str | Path) -> int:
    """Count the free bytes of a folder's disk."""
    return shutil.disk_usage(folder).free


def amount(count: int) -> str:
    """Bytes as people say them, to three digits or four: ``812 B``, ``1.234 GB``."""
    value, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.95 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.4g} {unit}"


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON by way of a temporary file, so that a reader never sees half of it."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_manifest(path: str | Path, value: dict[str, Any]) -> None:
    """Write JSON with a SHA-256 of its values."""
    write_json(path, sealed(value))


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Add the SHA-256 of JSON-able values, which `read_manifest` checks."""
    return {**value, "manifest_sha256": _sha256(value)}


def read_manifest(path: str | Path, way_out: str) -> dict[str, Any]:
    """Read the values of `write_manifest`.

    Raises:
        InputError: it is missing, or not what was written; the text ends with ``way_out``.
    """
    value = read_json(path, way_out)
    if not isinstance(value, dict) or value.pop("manifest_sha256", None) != _sha256(value):
        raise InputError(f"{path} is not as it was written (its SHA-256 differs): {way_out}")
    return value


def _sha256(value: Any) -> str:
    plain = json.loads(json.dumps(value))  # keys are texts, tuples lists, as a reader sees them
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Write text in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_output(path: str | Path, text: str) -> str:
    """Write a text that is a result; sweep partial files beside it; give its SHA-256."""
    sweep(Path(path).parent, f"{Path(path).name}.*")
    write_text(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def sweep(folder: Path, pattern: str) -> None:
    """Delete the partial files of killed processes: those that no process locks."""
    for stale in folder.glob(f"{pattern}.partial"):
        with suppress(OSError), open(stale, "rb") as file:  # its writer holds a lock on it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stale.unlink()


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file by way of a temporary one; its folder is made where it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        with open(partial, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # `sweep` leaves it alone
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk it would take the room that is left
        raise


def partial_name(path: Path) -> Path:
    """Make a new name at each call, so that two runs of one job write to different files.

    A long name is cut, for file systems have room for 255 bytes.
    """
    start = path.name.encode(errors="surrogateescape")[:200].decode(errors="ignore")
    return path.with_name(f"{start}.{uuid4().hex}.partial")


def read_marker(path: Path) -> Any:
    """Read JSON of unfinished work; None where it is missing or damaged."""
    try:
        return read_json(path, "")
    except (InputError, OSError):
        return None


def read_json(path: str | Path, way_out: str) -> Any:
    """Read JSON; a missing or broken file is an error that ends with ``way_out``."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: {way_out}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): {way_out}") from error
