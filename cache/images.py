"""Decoding of image files to 8-bit RGB: any mode, any number of bits, upright."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cache.index import ImageRow
from cache.store.artefact import file_hash
from cache.store.errors import InputError

try:
    import pillow_heif
except ImportError:
    HEIC = False
else:
    pillow_heif.register_heif_opener()
    HEIC = True

MOST_ASPECT = 50  # the longer side of an image against the shorter: a strip is no photo
MEGAPIXELS = 180  # more are refused before they are decoded, unless the variable says otherwise
LIMIT = "EIGENSEG_MEGAPIXELS"
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit warns and cannot be named: see `check_pixels`
BITS = (8, 10, 12, 14, 16)  # of cameras
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
HEIC_WAY_OUT = "HEIC needs `pip install pillow-heif`"
_ORIENTATION = 0x0112  # the tag of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WAY_OUT = "Replace or remove the file, then run prepare."


class Facts(NamedTuple):
    """Findings of a check of an image file.

    Attributes:
        height, width: px, upright.
        sha256: of the file's bytes, in hex.
        peak: the greatest value of a file of more than 8 bits; None for one of 8 bits.
        frames: pages or frames, of which the first is read.
    """

    height: int
    width: int
    sha256: str
    peak: float | None
    frames: int


class _Decoded(NamedTuple):
    """An image as its decoder gives it, and its values if they have more than 8 bits.

    The values are ``(H, W)`` or ``(H, W, bands)``; a scale of their own, that the file names, is
    ``white``.
    """

    image: Image.Image
    values: np.ndarray | None
    white: float | None
    frames: int


def read_image(
    path: str | Path,
    way_out: str = _WAY_OUT,
    sha256: str | None = None,
    white: float | None = None,
) -> np.ndarray:
    """Decode one image file, the first page or frame of several.

    Greyscale, palette, RGBA (its colours, alpha dropped), CMYK and files of more than 8 bits all
    come out as RGB; the EXIF rotation is applied, and all other metadata is passed over.

    Args:
        way_out: what the error tells to do.
        sha256: the hash that the file had when it was checked; None = any.
        white: the value that becomes 255 where a file has more than 8 bits a channel.

    Returns:
        uint8 ``(height, width, 3)``.

    Raises:
        InputError: the file is missing, truncated, not an image, of values without a known range,
            too large, many times as long as it is wide, or has changed since.
    """
    try:
        pixels = np.asarray(_upright(_decode(path), white))
        found = sha256 and file_hash(path)
    except MemoryError:
        raise
    except Exception as error:  # each decoder raises types of its own, struct.error among them
        raise InputError(_why(path, error, way_out)) from error
    if found != sha256:
        raise InputError(f"{path} has changed since it was checked: run prepare again.")
    return pixels


def read_row(row: ImageRow) -> np.ndarray:
    """Decode the image of a row of the index, as `prepare` checked it; see `read_image`."""
    return read_image(row.path, sha256=row.sha256, white=row.white)


def check_image(path: str | Path, white: float | None = None) -> Facts:
    """Decode one image file and tell what is in it.

    Args:
        white: as in `read_image`; None where it is not known yet.

    Raises:
        InputError: see `read_image`.
    """
    try:
        decoded = _decode(path)
        peak = None if decoded.white else _peak(decoded.values, white)
        image = _upright(decoded, white or white_of(peak or 0))
        return Facts(image.height, image.width, file_hash(path), peak, decoded.frames)
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(_why(path, error, _WAY_OUT)) from error


def white_of(peak: float) -> float:
    """The white of the fewest bits, of those that cameras have, that hold the greatest value."""
    return float(next(2**bits - 1 for bits in BITS if peak < 2**bits))


def survey(paths: Iterable[str | Path]) -> tuple[list[Path], list[Path]]:
    """Look at the headers of files: those of more than 8 bits, and those of several frames.

    What cannot be opened is in neither.
    """
    deep, several = [], []
    for path in map(Path, paths):
        with suppress(Exception), Image.open(path) as image:  # decoding will name it
            if _is_deep(image):
                deep.append(path)
            if _frames(image) > 1:
                several.append(path)
    return deep, several


def find_white(paths: Iterable[str | Path]) -> float | None:
    """One white for files of more than 8 bits, from the greatest value in them all."""
    peaks = []
    for path in paths:
        with suppress(InputError):
            peaks.append(check_image(path).peak or 0)
    return white_of(max(peaks)) if peaks else None


def check_pixels(image: Image.Image) -> None:
    """Raise ValueError where an image that is not decoded yet is too large."""
    most = float(os.environ.get(LIMIT, MEGAPIXELS))
    if image.width * image.height > most * 1e6:
        raise ValueError(
            f"an image must have at most {most:g} megapixels, found {image.width} x "
            f"{image.height} px. Reduce or cut it; where memory allows (10 bytes a pixel), "
            f"`export {LIMIT}={-(-image.width * image.height // 1_000_000)}` raises the limit"
        )


def shows(path: str | Path, height: int, width: int) -> bool:
    """Tell whether any loader finds so large an image in a file: no orientation tag turns it."""
    with Image.open(path) as image:
        plain = image.format not in ("HEIF", "AVIF") and _orientation(image) not in _TURNS
        return plain and image.size == (width, height)


def _why(path: str | Path, error: Exception, way_out: str) -> str:
    if Path(path).suffix.lower() in HEIC_SUFFIXES and not HEIC:
        return f"{path} cannot be decoded ({HEIC_WAY_OUT}). {way_out}"
    return f"{path} cannot be decoded ({error or type(error).__name__}). {way_out}"


def _decode(path: str | Path) -> _Decoded:
    with Image.open(path) as image:
        check_pixels(image)
        if max(image.size) > MOST_ASPECT * min(image.size):
            raise ValueError(
                f"its sides must differ at most {MOST_ASPECT} times, found {image.width} x "
                f"{image.height} px: cut it"
            )
        frames = _frames(image)
        deep, mode = _is_deep(image), image.mode
        # The header of a PGM names its white, to which Pillow has scaled.
        known = image.format == "PPM" and deep and image.tile[0].codec_name != "raw"
        image.load()
    if not deep:
        return _Decoded(image, None, None, frames)
    if mode.startswith("I") or mode == "F":
        return _Decoded(image, np.asarray(image), 65535.0 if known else None, frames)
    return _Decoded(image, _deep_bands(path, np.asarray(image).astype(np.uint16)), None, frames)


def _is_deep(image: Image.Image) -> bool:
    """Tell whether a file that is not decoded yet has more than 8 bits a channel."""
    return image.mode.startswith("I") or image.mode == "F" or ";16" in _raw_mode(image)


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name of how the bytes of a file lie, such as ``RGB;16B``."""
    args: Any = image.tile[0].args if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]
    return str(args[0] if isinstance(args, tuple) and args else args)


def _deep_bands(path: str | Path, high: np.ndarray) -> np.ndarray:
    """Values of 16 bits of a file with several channels, of which Pillow keeps the high bytes.

    Read with the order of bytes turned round, it gives the low ones.

    Args:
        high: uint16 ``(H, W, bands)``, the high bytes.
    """
    turned = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    with Image.open(path) as image:
        raw = _raw_mode(image)
        kind, order = raw.split(";16")
        if raw == "LA;16B":
            swapped = "RGBA"  # bytes one by one: grey high, grey low, alpha high, alpha low
        elif kind in ("RGB", "RGBA", "RGBX", "CMYK"):
            swapped = f"{kind};16{turned[order]}"
        else:
            return high * 257  # premultiplied by alpha: high bytes alone
        image.tile = [tile._replace(args=_with(tile.args, swapped)) for tile in image.tile]  # type: ignore[attr-defined]
        image.load()
        low = np.asarray(image).astype(np.uint16)
    if raw == "LA;16B":
        return (low[..., 0] << 8) | low[..., 1]
    return (high << 8) | low


def _with(args: Any, raw_mode: str) -> Any:
    return (raw_mode, *args[1:]) if isinstance(args, tuple) else raw_mode


def _peak(values: np.ndarray | None, white: float | None) -> float | None:
    """The greatest value, None of 8 bits; ValueError where black and white cannot be known."""
    if values is None:
        return None
    least, most = float(values.min(initial=0)), float(values.max(initial=0))
    known = values.dtype.kind != "f" and most <= 65535
    if not least >= 0 or not (white or known):
        kind = "floating point" if values.dtype.kind == "f" else "integers"
        raise ValueError(
            f"its values must be of 8 or 16 bits, found {kind} from {least:.4g} to {most:.4g}, "
            "whose black and white are not known: convert it to 8 bits or, where black is 0, give "
            "white as `datasets.<name>.white`"
        )
    return most


def _upright(decoded: _Decoded, white: float | None) -> Image.Image:
    """The RGB image of 8 bits, turned as its orientation tag says."""
    image, values = decoded.image, decoded.values
    turn = _TURNS.get(_orientation(image))
    if values is not None:
        white = decoded.white or white
        _peak(values, white)
        if not white:
            raise ValueError(
                "it has more than 8 bits a channel, so its white must be known, found none: "
                "run prepare"
            )
        scaled = np.rint(values.astype(np.float32) * (255.0 / white)).clip(0, 255)
        bands = [
            Image.fromarray(band)
            for band in np.moveaxis(np.atleast_3d(scaled.astype(np.uint8)), -1, 0)
        ]
        image = Image.merge("L" if len(bands) == 1 else image.mode, bands)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The orientation tag, 1 where there is none or the metadata is broken."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # whatever a parser raises, the pixels are good
        return 1


def _frames(image: Image.Image) -> int:
    """Pages of a TIFF or frames of an animation; the second pictures of phones do not count."""
    try:
        return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    except Exception:  # a broken later page is none that is read
        return 2
    finally:
        if image.format == "TIFF":
            image.seek(0)
