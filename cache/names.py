"""Files of names: what a person calls the clusters of a head, as the atlas saves them.

JSON of format 2; codes are class indices, or -1 = not named yet, -2 = mixed (several things in one
cluster), -3 = ignored. All three have no class.

- ``head`` (its fingerprint), ``predictor``, ``classes`` (names by index), ``colours`` (of each);
- ``clusters``: the code of each cluster;
- ``splits``: clusters whose parts have names of their own: ``cluster``, ``parts`` (a digit for each
  cluster: the part where that one is the best other cluster) and ``codes`` of the parts;
- ``corrections``: single regions of photos (``photo``, ``sha256``) with a code of their own:
  ``runs`` (start, length, ...) of cells in rows of a map ``height x width`` of the photo, and the
  ``cluster`` that they were found in, null where that was of another head;
- ``photos``: the codes of each photo in a small map (`cache.runs`, codes + 3): by them the names
  pass on to the clusters of another head.

Format 1 has no colours, splits, corrections and photos.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache import runs
from cache.store.artefact import read_json, write_text
from cache.store.errors import InputError

FORMAT = 2
PREDICTOR = "ours"  # whose clusters are named
NO_CLASS = 255  # label value of pixels without a class
IGNORED = -3
UNNAMED = -1
LEAST = -3  # of all codes
_WAY_OUT = "open results/report/clusters.html, name the clusters and save the file again."


class Split(NamedTuple):
    """A cluster in parts: int64 ``(K,)`` the part by the best other cluster, the codes of parts."""

    parts: np.ndarray
    codes: np.ndarray


class Correction(NamedTuple):
    """A region of one photo with a code of its own.

    Attributes:
        photo: its name, split/stem.
        sha256: of the photo's file.
        cells: bool ``(h, w)``, the region in a small map of the whole photo.
        cluster: that it was found in; None where that was of another head.
        code: a class index or `IGNORED`.
    """

    photo: str
    sha256: str
    cells: np.ndarray
    cluster: int | None
    code: int

    @property
    def value(self) -> int:
        """The label value of its pixels."""
        return NO_CLASS if self.code < 0 else self.code


class Names(NamedTuple):
    """Content of a file of names.

    Attributes:
        head: fingerprint of the head whose clusters are named.
        classes: names by index.
        colours: uint8 ``(classes, 3)``; None where the file has none.
        codes: int64 ``(K,)`` of the clusters.
        splits: by cluster.
        photos: by SHA-256 of the photo, int64 ``(h, w)`` codes.
    """

    head: str
    classes: list[str]
    colours: np.ndarray | None
    codes: np.ndarray
    splits: dict[int, Split]
    corrections: list[Correction]
    photos: dict[str, np.ndarray]

    @property
    def values(self) -> np.ndarray:
        """uint8 ``(K,)``, the label value of each cluster, `NO_CLASS` = none."""
        return _values(self.codes)

    @property
    def by_rival(self) -> dict[int, np.ndarray]:
        """Of split clusters, uint8 ``(K,)``: the label value by the best other cluster."""
        return {k: _values(split.codes)[split.parts] for k, split in self.splits.items()}

    @property
    def naming(self) -> tuple[Any, ...]:
        """All that gives label values: the arguments of `pipeline.drawing.naming.class_naming`."""
        return self.values, self.classes, self.colours, self.by_rival, self.corrections


def read_names(path: str | Path, head: str, clusters: int) -> Names:
    """Read a file of names of this head.

    Args:
        head: fingerprint of the head whose clusters are to be named.
        clusters: K.

    Raises:
        InputError: it is missing, no file of names, names nothing, or belongs to another head.
    """
    names = read_any_names(path)
    if names.head != head:
        raise InputError(
            f"{path} must name the clusters of this head ({head}), found names for those of "
            f"{names.head}. Carry them over: set segment.names to {path} and run `eigenseg name` "
            "(or `dvc repro`), which writes data/named/names.json for this head; or load the file "
            "in results/report/clusters.html and save it."
        )
    if len(names.codes) != clusters:
        raise InputError(
            f"{path} must give each of {clusters} clusters a code, found {len(names.codes)}: "
            f"{_WAY_OUT}"
        )
    return names


def read_any_names(path: str | Path) -> Names:
    """Read a file of names of any head.

    Raises:
        InputError: it is missing, no file of names, or names nothing.
    """
    value = read_json(path, _WAY_OUT)
    if not isinstance(value, dict) or value.get("format") not in (1, FORMAT):
        raise InputError(f"{path} is no file of names of format 1 or {FORMAT}: {_WAY_OUT}")
    if value.get("predictor") != PREDICTOR:
        raise InputError(
            f"{path} must name clusters of {PREDICTOR}, found those of {value.get('predictor')}: "
            f"{_WAY_OUT}"
        )
    classes = _classes(path, value.get("classes"))
    try:
        codes = _codes(value["clusters"], len(classes))
        splits = {int(one["cluster"]): _split(one, len(codes)) for one in value.get("splits", [])}
        names = Names(
            str(value["head"]),
            classes,
            _colours(value.get("colours"), len(classes)),
            codes,
            splits,
            [_correction(one) for one in value.get("corrections", [])],
            {one["sha256"]: _small_map(one) for one in value.get("photos", [])},
        )
        _check_codes(names)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not as the atlas saves it ({error}): {_WAY_OUT}") from error
    return names


def write_names(path: str | Path, names: Names) -> None:
    """Write a file of names, format 2, with lists of numbers on one line."""
    corrections = [
        {
            **{key: getattr(one, key) for key in ("photo", "sha256", "cluster", "code")},
            "height": one.cells.shape[0],
            "width": one.cells.shape[1],
            "runs": _cell_runs(one.cells),
        }
        for one in names.corrections
    ]
    splits = [
        {
            "cluster": k,
            "parts": "".join(map(str, split.parts.tolist())),
            "codes": split.codes.tolist(),
        }
        for k, split in names.splits.items()
    ]
    value = {
        "format": FORMAT,
        "head": names.head,
        "predictor": PREDICTOR,
        "classes": names.classes,
        "colours": [] if names.colours is None else names.colours.tolist(),
        "clusters": names.codes.tolist(),
        "splits": splits,
        "corrections": corrections,
        "photos": [_entry(sha256, codes) for sha256, codes in names.photos.items()],
    }
    text = json.dumps(value, indent=1, ensure_ascii=False)
    text = re.sub(r"\[[\d\s,-]*\]", lambda match: "".join(match[0].split()), text)
    write_text(path, text + "\n")


def _entry(sha256: str, codes: np.ndarray) -> dict[str, Any]:
    height, width = codes.shape
    packed = base64.b64encode(runs.pack(codes - LEAST)).decode("ascii")
    return {"sha256": sha256, "height": height, "width": width, "runs": packed}


def _small_map(entry: dict[str, Any]) -> np.ndarray:
    content = base64.b64decode(entry["runs"], validate=True)
    return runs.unpack(content, entry["height"], entry["width"]).astype(np.int64) + LEAST


def _correction(entry: dict[str, Any]) -> Correction:
    cells = np.zeros(entry["height"] * entry["width"], bool)
    starts, lengths = entry["runs"][::2], entry["runs"][1::2]
    for start, length in zip(starts, lengths, strict=True):
        if not 0 <= start < start + length <= len(cells):
            raise ValueError(f"a region leaves its photo: {start} + {length} of {len(cells)} cells")
        cells[start : start + length] = True
    shaped = cells.reshape(entry["height"], entry["width"])
    cluster = None if entry["cluster"] is None else int(entry["cluster"])
    return Correction(entry["photo"], entry["sha256"], shaped, cluster, int(entry["code"]))


def _cell_runs(cells: np.ndarray) -> list[int]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], cells.ravel().astype(np.int8), [0]])))
    starts, ends = edges[::2], edges[1::2]
    return np.stack([starts, ends - starts], axis=1).ravel().tolist()


def _split(entry: dict[str, Any], clusters: int) -> Split:
    parts = np.array([int(digit) for digit in entry["parts"]], dtype=np.int64)
    codes = np.array(entry["codes"], dtype=np.int64)
    if not 0 <= int(entry["cluster"]) < clusters or len(parts) != clusters:
        raise ValueError(f"a split must give the parts of one of {clusters} clusters")
    if parts.max() >= len(codes):
        raise ValueError(f"a split of {len(codes)} parts has a part {parts.max()}")
    return Split(parts, codes)


def _codes(codes: Any, classes: int) -> np.ndarray:
    if not isinstance(codes, list) or not all(type(code) is int for code in codes):
        raise ValueError(
            f"clusters must be integers in {LEAST}..{classes - 1}, found {codes!s:.60}"
        )
    return np.array(codes, dtype=np.int64)


def _check_codes(names: Names) -> None:
    """Raise ValueError where a code is none."""
    codes = [names.codes, np.array([one.code for one in names.corrections], dtype=np.int64)]
    codes += [split.codes for split in names.splits.values()]
    codes += [small.ravel() for small in names.photos.values()]
    for some in codes:
        wrong = [
            code for code in np.unique(some).tolist() if not LEAST <= code < len(names.classes)
        ]
        if wrong:
            raise ValueError(
                f"codes must be integers in {LEAST}..{len(names.classes) - 1}, found {wrong[0]}"
            )


def _values(codes: np.ndarray) -> np.ndarray:
    return np.where(codes < 0, NO_CLASS, codes).astype(np.uint8)


def _colours(colours: Any, classes: int) -> np.ndarray | None:
    if not colours:
        return None
    found = np.array(colours, dtype=np.int64)
    if found.shape != (classes, 3) or found.min() < 0 or found.max() > 255:
        raise ValueError(f"colours must be {classes} triples in 0..255")
    return found.astype(np.uint8)


def _classes(path: str | Path, classes: Any) -> list[str]:
    named = isinstance(classes, list) and all(
        isinstance(name, str) and name.strip() == name and name.isprintable() and name
        for name in classes
    )
    if not named or not 0 < len(classes) <= NO_CLASS or len(set(classes)) < len(classes):
        raise InputError(
            f"{path} must hold 1 to {NO_CLASS} class names, each once and on one line, found "
            f"{str(classes)[:60]}: {_WAY_OUT}"
        )
    return classes
