"""Finding of image files: which files below a folder are photos, and what each is called."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from cache.images import Facts, check_image, white_of
from cache.index import ImageRow
from cache.layouts import LAYOUTS, Layout
from cache.store.errors import InputError
from cache.walk import SUFFIXES, Walk, some, walk


class SplitFile(NamedTuple):
    """An image file, the split that it belongs to, and its name inside of it."""

    split: str
    path: Path
    stem: str


class Photo(NamedTuple):
    """An image file to look at, and the name of what is made from it."""

    name: str
    path: Path


def lie_of(root: Path, splits: Sequence[str], layout: Layout) -> Layout:
    """The layout as the files lie: photos that are not sorted into splits are one, named `all`.

    These are the photos of a root without `images` in it, or directly in `images`.

    Raises:
        InputError: the folder is missing, or unsorted photos are asked for as other splits.
    """
    if not root.is_dir():
        raise InputError(
            f"the data folder {root} does not exist. Put or link your images there, or set "
            "`datasets.<name>.root` in params.yaml."
        )
    inside = root / "images"
    direct = inside.is_dir() and any(
        path.suffix.lower() in SUFFIXES and path.is_file() for path in inside.iterdir()
    )
    sorted_in = [split for split in splits if (inside / split).is_dir()]
    if layout != LAYOUTS["folder"] or sorted_in or (inside.is_dir() and not direct):
        return layout
    if set(splits) != {"all"}:
        found = (
            f"{inside} holds photos, not folders of splits"
            if direct
            else (f"{root} has no folder `images`")
        )
        raise InputError(
            f"{found}, so it is one split named `all`, but params.yaml asks for "
            f"{', '.join(dict.fromkeys(splits))}. Set `datasets.<name>.train` and `.eval` to "
            f"`all`, or lay the files out as {inside}/<split>/."
        )
    if not direct:
        return layout._replace(images=".")
    labels = "labels/all" if (root / "labels/all").is_dir() else "labels"
    return layout._replace(images="images", labels=labels)


def find_images(
    root: str | Path,
    splits: tuple[str, ...],
    layout: Layout = LAYOUTS["folder"],
    subset: Mapping[str, int] = MappingProxyType({}),
) -> tuple[list[SplitFile], list[str]]:
    """All image files of the splits below ``root``, sorted by split and path.

    Args:
        layout: where they lie, see `lie_of`.
        subset: how many images to take of a split, by name: those whose stems' SHA-256 come first,
            so that images that are added later change few of them.

    Returns:
        The files, and a line for each split of which something was passed over.

    Raises:
        InputError: the folder is missing, a split is missing or empty, or two files of a labelled
            split have the same stem (their labels could not be told apart).
    """
    root = Path(root)
    layout = lie_of(root, splits, layout)
    files, notes, faults = [], [], []
    for split, folder in _split_folders(root, splits, layout).items():
        paths, text = _split_files(root, split, folder, layout)
        stems = {path: stem(folder, path, layout.ending) for path in paths}
        if not paths:
            kinds = f"*{layout.ending}" if layout.ending else ", ".join(SUFFIXES)
            faults.append(f"the split {split} is empty: {folder} holds no image ({kinds}). {text}")
        elif text:
            notes.append(f"{folder}: {text}")
        if (root / layout.labels.format(split=split)).is_dir():
            faults += _twice(split, stems)
        names = unique(stems, {path: stem(folder, path, "/") for path in paths})
        chosen = _first(names, subset[split]) if split in subset else names
        files += [SplitFile(split, path, name) for path, name in chosen.items()]
    if faults:
        raise InputError("\n".join(faults))
    return files, notes


def _twice(split: str, stems: Mapping[Path, str]) -> list[str]:
    by_stem: dict[str, list[str]] = {}
    for path, name in stems.items():
        by_stem.setdefault(name, []).append(str(path))
    return [
        f"the stem {name} of split {split} is used twice ({', '.join(paths)}), but a label belongs "
        "to one image: rename one."
        for name, paths in by_stem.items()
        if len(paths) > 1
    ]


def unique(stems: Mapping[Path, str], names: Mapping[Path, str]) -> dict[Path, str]:
    """The stems of files or, where several share one, their whole names, which differ."""
    found = dict(stems)
    while True:
        counts = Counter(found.values())
        again = {path: names[path] for path, name in found.items() if counts[name] > 1}
        if found == (found := {**found, **again}):
            return found


def _split_folders(root: Path, splits: Sequence[str], layout: Layout) -> dict[str, Path]:
    """The folder of images of every split that is asked for."""
    folders = {split: root / layout.images.format(split=split) for split in dict.fromkeys(splits)}
    missing = [split for split, folder in folders.items() if not folder.is_dir()]
    if missing:
        above = folders[missing[0]].parent
        here = (
            sorted(path.name for path in above.iterdir() if path.is_dir()) if above.is_dir() else []
        )
        raise InputError(
            f"{above} has no split {', '.join(missing)}; it has {', '.join(here) or 'none'}. "
            "Set `datasets.<name>.train` and `.eval` to splits that exist."
        )
    return folders


def _split_files(root: Path, split: str, folder: Path, layout: Layout) -> tuple[list[Path], str]:
    """The image files of a split, by its list where the layout has one; what was passed over."""
    if not layout.listing:
        found = walk(folder, [root / "labels"])
        return [path for path in found.files if path.name.endswith(layout.ending)], found.text
    listing = root / layout.listing.format(split=split)
    try:
        stems = listing.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{listing} must list the images of split {split} ({error}): restore it, or set "
            "`datasets.<name>.train` and `.eval` to splits that exist."
        ) from error
    paths = [folder / f"{name}{layout.ending}" for name in stems]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise InputError(
            f"{listing} lists {len(missing)} images that are missing: {', '.join(missing[:10])}. "
            "Restore them, or take them from the list."
        )
    return sorted(paths), ""


def _first(names: Mapping[Path, str], count: int) -> dict[Path, str]:
    """Take ``count`` files, those whose names' hashes come first, in their order."""

    def digest(path: Path) -> bytes:
        return hashlib.sha256(names[path].encode()).digest()

    kept = set(sorted(names, key=digest)[:count])
    return {path: name for path, name in names.items() if path in kept}


def stem(folder: Path, path: Path, ending: str = "") -> str:
    """The name of an image inside its split: its path without suffix or ending, folders kept."""
    inside = path.relative_to(folder)
    return inside.as_posix().removesuffix(ending) if ending else inside.with_suffix("").as_posix()


def find_photos(
    inputs: Sequence[str | Path], others: Sequence[Path] = ()
) -> tuple[list[Photo], list[str]]:
    """Image files given one by one, or by their folders, in this order; folders sorted by path.

    A file is named after its stem, a file in a folder given after its path below that folder,
    without suffix.

    Args:
        inputs: files and folders; a file may have any suffix.
        others: files and folders whose images are not meant.

    Returns:
        The photos, each file once, and a line for each folder of which something was passed over.

    Raises:
        InputError: an input is missing, or there is no image.
    """
    missing = [str(path) for path in inputs if not Path(path).exists()]
    if missing:
        raise InputError(
            f"every input must be an image file or a folder of images, found nothing at "
            f"{', '.join(missing)}: correct the path."
        )
    photos: dict[str, Photo] = {}
    notes = []
    for path in map(Path, inputs):
        found = walk(path, others) if path.is_dir() else Walk([path], {})
        if found.text:
            notes.append(f"{path}: {found.text}")
        for file in found.files:
            name = stem(path, file) if path.is_dir() else path.stem
            photos.setdefault(os.path.abspath(file), Photo(name, file))
    if not photos:
        raise InputError(
            f"{', '.join(str(path) for path in inputs)} must hold at least one image "
            f"({', '.join(SUFFIXES)}), found none. {' '.join(notes)}"
        )
    return list(photos.values()), notes


def check_images(
    root: str | Path,
    splits: tuple[str, ...],
    track: Callable[[Sequence[SplitFile]], Iterable[SplitFile]] = iter,
    layout: Layout = LAYOUTS["folder"],
    subset: Mapping[str, int] = MappingProxyType({}),
    check: Callable[[Path, float | None], Facts] = check_image,
    white: float | None = None,
) -> tuple[list[ImageRow], list[str]]:
    """Check every image and return the index; all faults are reported at once.

    Args:
        track: shows how far it is, while it yields what it is given.
        layout, subset: see `find_images`.
        check: `check_image`, or that with a memory.
        white: of the files of more than 8 bits; None = found from the greatest value in them all.

    Returns:
        The rows, and a line for all that the user should know of them.

    Raises:
        InputError: see `find_images`; or files that cannot be decoded, each named.
    """
    files, notes = find_images(root, splits, layout, subset)
    found: list[tuple[SplitFile, Facts]] = []
    faults = []
    for item in track(files):
        try:
            found.append((item, Facts(*check(item.path, white))))
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError(f"{len(faults)} of {len(files)} images are bad:\n" + "\n".join(faults))
    peaks = {str(item.path): facts.peak for item, facts in found if facts.peak is not None}
    if peaks:
        white = white or white_of(max(peaks.values()))
        notes.append(_range_text(peaks, white))
    if several := [str(item.path) for item, facts in found if facts.frames > 1]:
        notes.append(f"only the first page or frame is read of {some(several)}")
    rows = [
        ImageRow(
            *(number, item.split, item.stem, str(item.path)),
            *(facts.height, facts.width, facts.sha256),
            white if facts.peak is not None else None,
        )
        for number, (item, facts) in enumerate(found)
    ]
    return rows, notes


def _range_text(peaks: Mapping[str, float], white: float) -> str:
    """Explain the one range in which files of more than 8 bits are read."""
    text = (
        f"{len(peaks)} files of more than 8 bits are read with white = {white:g} (the greatest "
        f"value in them is {max(peaks.values()):g}); `datasets.<name>.white` sets another"
    )
    if dark := [path for path, peak in peaks.items() if peak < white / 8]:
        text += f". Nearly black, as of another range: {some(dark)}"
    if cut := [path for path, peak in peaks.items() if peak > white]:
        text += f". Cut off at white: {some(cut)}"
    return text
