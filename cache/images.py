"""Image files: finding, checking and decoding them to 8-bit RGB."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from cache.index import ImageRow
from cache.layouts import LAYOUTS, Layout
from cache.store.artefact import file_hash
from cache.store.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MOST_ASPECT = 50  # the longer side of an image against the shorter: a strip is no photo
_WAY_OUT = "Replace or remove the file, then run prepare."


class SplitFile(NamedTuple):
    """An image file and the split that it belongs to."""

    split: str
    path: Path


class Photo(NamedTuple):
    """An image file to look at, and the name of what is made from it."""

    name: str
    path: Path


def read_image(path: str | Path, way_out: str = _WAY_OUT, sha256: str | None = None) -> np.ndarray:
    """Decode one image file.

    Greyscale, palette, RGBA (its colours, alpha dropped), CMYK and 16-bit files all come out as
    RGB; the EXIF rotation is applied.

    Args:
        way_out: what the error tells to do.
        sha256: the hash that the file had when it was checked; None = any.

    Returns:
        uint8 ``(height, width, 3)``.

    Raises:
        InputError: the file is missing, truncated, not an image, of values without a known range,
            many times as long as it is wide, or has changed since.
    """
    try:
        with Image.open(path) as image:
            if max(image.size) > MOST_ASPECT * min(image.size):
                raise ValueError(
                    f"its sides must differ at most {MOST_ASPECT} times, found {image.width} x "
                    f"{image.height} px: cut it"
                )
            image.load()
            pixels = np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
        found = sha256 and file_hash(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be decoded ({error}). {way_out}") from error
    if found != sha256:
        raise InputError(f"{path} has changed since it was checked: run prepare again.")
    return pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips 16-bit greys at 255 when it converts them, which turns photos white.
        values = np.asarray(image, dtype=np.float32)
        least, most = values.min(initial=0), values.max(initial=0)
        if image.mode == "F" or not 0 <= least <= most <= 65535:
            raise ValueError(
                f"its values must be of 8 or 16 bits, found {image.mode} from {least:.4g} to "
                f"{most:.4g}, whose black and white are not known: convert it to 8 bits"
            )
        top = 65535.0 if most > 255 else 255.0
        image = Image.fromarray(np.clip(values * (255.0 / top), 0, 255).astype(np.uint8))
    return image.convert("RGB")


def find_images(
    root: str | Path,
    splits: tuple[str, ...],
    layout: Layout = LAYOUTS["folder"],
    subset: Mapping[str, int] = MappingProxyType({}),
) -> list[SplitFile]:
    """All image files of the splits below ``root``, sorted by split and path.

    A folder of loose photos (layout `folder`, no ``images`` in it) is one split named ``all``.

    Args:
        subset: how many images to take of a split, by name: those whose stems' SHA-256 come first,
            so that images that are added later change few of them.

    Raises:
        InputError: the folder is missing, a split is missing or empty, or two files of one split
            have the same stem (their labels and label maps could not be told apart).
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            f"the data folder {root} does not exist. Put or link your images there, or set "
            "`datasets.<name>.root` in params.yaml."
        )
    folders = _split_folders(root, splits, layout)
    files = []
    for split, folder in folders.items():
        paths = _split_files(root, split, folder, layout)
        paths = [path for path in paths if not path.is_relative_to(root / "labels")]
        if split in subset:
            paths = _first(paths, folder, layout, subset[split])
        files += [SplitFile(split, path) for path in paths]
    faults = list(_split_faults(folders, files, layout))
    if faults:
        raise InputError("\n".join(faults))
    return files


def _split_folders(root: Path, splits: tuple[str, ...], layout: Layout) -> dict[str, Path]:
    """The folder of images of every split that is asked for."""
    wanted = list(dict.fromkeys(splits))
    if layout == LAYOUTS["folder"] and not (root / "images").is_dir():
        if wanted != ["all"]:
            raise InputError(
                f"{root} has no folder `images`, so it is one split named `all`, but params.yaml "
                f"asks for {', '.join(wanted)}. Set `datasets.<name>.train` and `.eval` to `all`, "
                f"or lay the files out as {root}/images/<split>/."
            )
        return {"all": root}
    folders = {split: root / layout.images.format(split=split) for split in wanted}
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


def _split_files(root: Path, split: str, folder: Path, layout: Layout) -> list[Path]:
    """The image files of a split, by its list where the layout has one."""
    if not layout.listing:
        return [path for path in _files(folder) if path.name.endswith(layout.ending)]
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
    return sorted(paths)


def _first(paths: Sequence[Path], folder: Path, layout: Layout, count: int) -> list[Path]:
    """So many of the files, those whose stems' hashes come first; in their order."""

    def digest(path: Path) -> bytes:
        return hashlib.sha256(stem(folder, path, layout.ending).encode()).digest()

    return sorted(sorted(paths, key=digest)[:count])


def find_photos(inputs: Sequence[str | Path], others: Sequence[Path] = ()) -> list[Photo]:
    """Image files given one by one, or by their folders, in this order; folders sorted by path.

    A file is named after its stem, a file in a folder given after its path below that folder,
    without suffix.

    Args:
        inputs: files and folders; a file may have any suffix.
        others: files and folders whose images are not meant.

    Raises:
        InputError: an input is missing, there is no image, or two would get the same name.
    """
    missing = [str(path) for path in inputs if not Path(path).exists()]
    if missing:
        raise InputError(
            f"every input must be an image file or a folder of images, found nothing at "
            f"{', '.join(missing)}: correct the path."
        )
    photos = [photo for path in inputs for photo in _photos(Path(path), others)]
    if not photos:
        raise InputError(
            f"{', '.join(str(path) for path in inputs)} must hold at least one image "
            f"({', '.join(SUFFIXES)}; hidden files are passed over), found none."
        )
    by_name: dict[str, list[str]] = {}
    for photo in photos:
        by_name.setdefault(photo.name, []).append(str(photo.path))
    faults = [
        f"two images must not have the same name {name}, found {', '.join(paths)}: rename one, or "
        "give the folder above them."
        for name, paths in by_name.items()
        if len(paths) > 1
    ]
    if faults:
        raise InputError("\n".join(faults))
    return photos


def _photos(path: Path, others: Sequence[Path]) -> list[Photo]:
    if not path.is_dir():
        return [Photo(path.stem, path)]
    unwanted = [other.resolve() for other in others]
    return [
        Photo(stem(path, file), file)
        for file in _files(path)
        if not any(file.resolve().is_relative_to(other) for other in unwanted)
    ]


def _files(folder: Path) -> list[Path]:
    """Image files below a folder; hidden files and other types are passed over."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    strange = [str(file) for file in files if _unprintable(str(file.relative_to(folder)))]
    if strange:
        raise InputError(
            f"names of images must be UTF-8 without control characters, found {strange[:10]}: "
            "rename them."
        )
    return files


def _unprintable(name: str) -> bool:
    """Whether a name breaks lines, or is of bytes that are no UTF-8 (Python's surrogates)."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def stem(folder: Path, path: Path, ending: str = "") -> str:
    """The name of an image inside its split: its path without suffix or ending, folders kept."""
    inside = path.relative_to(folder)
    return inside.as_posix().removesuffix(ending) if ending else inside.with_suffix("").as_posix()


def _split_faults(
    folders: dict[str, Path], files: list[SplitFile], layout: Layout
) -> Iterator[str]:
    for split, folder in folders.items():
        by_stem: dict[str, list[Path]] = {}
        for item in files:
            if item.split == split:
                by_stem.setdefault(stem(folder, item.path, layout.ending), []).append(item.path)
        if not by_stem:
            kinds = f"*{layout.ending}" if layout.ending else ", ".join(SUFFIXES)
            yield f"the split {split} is empty: {folder} holds no image ({kinds})."
        for name, paths in by_stem.items():
            if len(paths) > 1:
                names = ", ".join(str(path) for path in paths)
                yield f"the stem {name} of split {split} is used twice ({names}): rename one."


def check_image(path: str | Path) -> tuple[int, int, str]:
    """Decode one image file.

    Returns:
        Height and width, px, and the SHA-256 of the file's bytes, in hex.

    Raises:
        InputError: see `read_image`.
    """
    height, width, _ = read_image(path).shape
    return height, width, file_hash(path)


def check_images(
    root: str | Path,
    splits: tuple[str, ...],
    track: Callable[[Sequence[SplitFile]], Iterable[SplitFile]] = iter,
    layout: Layout = LAYOUTS["folder"],
    subset: Mapping[str, int] = MappingProxyType({}),
    check: Callable[[Path], tuple[int, int, str]] = check_image,
) -> list[ImageRow]:
    """Check every image and return the index; all faults are reported at once.

    Args:
        track: shows how far it is, while it yields what it is given.
        layout, subset: see `find_images`.
        check: `check_image`, or that with a memory.

    Raises:
        InputError: see `find_images`; or files that cannot be decoded, each named.
    """
    files = find_images(root, splits, layout, subset)
    folders = _split_folders(Path(root), splits, layout)
    rows: list[ImageRow] = []
    faults = []
    for item in track(files):
        try:
            height, width, digest = check(item.path)
        except InputError as error:
            faults.append(str(error))
            continue
        name = stem(folders[item.split], item.path, layout.ending)
        rows.append(ImageRow(len(rows), item.split, name, str(item.path), height, width, digest))
    if faults:
        raise InputError(f"{len(faults)} of {len(files)} images are bad:\n" + "\n".join(faults))
    return rows
