"""Label maps in the files of other tools: COCO (panoptic, instances) and Label Studio (brush)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image
from scipy import ndimage

from cache.store.artefact import read_json, write_bytes, write_json, write_text
from cache.store.errors import InputError

SMALLEST = 1e-4  # of a photo: smaller connected parts are no instances
_RUN_BITS = (3, 4, 8, 16)  # of Label Studio's runs: how many bits may say a length
_WAY_OUT = "remove the file, or choose another folder."


class Coco:
    """COCO's files of a folder: ``coco/instances.json``, ``coco/panoptic.json`` and its PNG files.

    Category ids are class indices + 1. In ``panoptic`` each class of a photo is one segment,
    whose id is its category's; ``instances`` holds the connected parts of a class (by edges), as
    compressed RLE. Photos of a former export of the same classes stay.
    """

    def __init__(self, out: str | Path, classes: Sequence[str], colours: np.ndarray) -> None:
        """Open the files.

        Args:
            classes: names by label value.
            colours: uint8 ``(classes + 1, 3)``.

        Raises:
            InputError: pycocotools is not installed, or a former file is damaged.
        """
        try:
            from pycocotools import mask
        except ImportError as error:
            raise InputError(
                "COCO files need the package pycocotools, which is not installed: run "
                '`pip install -c constraints.txt -e ".[export]"`, or leave `coco` out.'
            ) from error
        self._mask = mask
        self._folder = Path(out) / "coco"
        self._categories = [
            {"id": i + 1, "name": name, "supercategory": "", "isthing": 0, "color": colour}
            for i, (name, colour) in enumerate(zip(classes, colours.tolist(), strict=False))
        ]
        self._photos: dict[str, tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]] = {}
        self._read_former()

    def add(self, name: str, suffix: str, labels: np.ndarray) -> None:
        """Add a photo.

        Args:
            name: of the photo, a path without suffix.
            suffix: of its file.
            labels: uint8 ``(H, W)``, values beyond the classes mean none.
        """
        height, width = labels.shape
        ids = np.where(labels < len(self._categories), labels.astype(np.uint32) + 1, 0)
        planes = np.stack([ids & 255, ids >> 8, np.zeros_like(ids)], axis=-1).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(planes).save(buffer, "PNG")
        write_bytes(self._folder / "panoptic" / f"{name}.png", buffer.getvalue())
        image = {"file_name": f"{name}{suffix}", "height": height, "width": width}
        segments = [
            {"id": category, "category_id": category, **self._shape(ids == category), "iscrowd": 0}
            for category in np.unique(ids[ids > 0]).tolist()
        ]
        panoptic = {"file_name": f"{name}.png", "segments_info": segments}
        self._photos[name] = image, panoptic, self._instances(ids)

    def close(self) -> None:
        """Write both JSON files."""
        images, panoptic, instances, number = [], [], [], count(1)
        for i, name in enumerate(sorted(self._photos), 1):
            image, segments, parts = self._photos[name]
            images.append({**image, "id": i})
            panoptic.append({**segments, "image_id": i})
            instances += [{**part, "image_id": i, "id": next(number)} for part in parts]
        shared = {"images": images, "categories": self._categories}
        write_json(self._folder / "panoptic.json", {**shared, "annotations": panoptic})
        write_json(self._folder / "instances.json", {**shared, "annotations": instances})

    def _instances(self, ids: np.ndarray) -> list[dict[str, Any]]:
        found = []
        for category in np.unique(ids[ids > 0]).tolist():
            parts, _ = ndimage.label(ids == category)
            for part, box in enumerate(ndimage.find_objects(parts), 1):
                if (parts[box] == part).sum() < SMALLEST * ids.size:
                    continue
                own = np.zeros(ids.shape, np.uint8)
                own[box] = parts[box] == part
                code = self._mask.encode(np.asfortranarray(own))
                runs = {"size": list(ids.shape), "counts": code["counts"].decode("ascii")}
                shape = self._shape(own > 0)
                found.append({"category_id": category, "segmentation": runs, **shape, "iscrowd": 0})
        return found

    @staticmethod
    def _shape(own: np.ndarray) -> dict[str, Any]:
        rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        box = [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
        return {"area": int(own.sum()), "bbox": box}

    def _read_former(self) -> None:
        paths = [self._folder / f"{kind}.json" for kind in ("panoptic", "instances")]
        if not all(path.is_file() for path in paths):
            return
        panoptic, instances = (read_json(path, _WAY_OUT) for path in paths)
        if panoptic["categories"] != self._categories:
            return
        parts: dict[int, list[dict[str, Any]]] = {}
        for part in instances["annotations"]:
            parts.setdefault(part.pop("image_id"), []).append(part)
        for image, segments in zip(panoptic["images"], panoptic["annotations"], strict=True):
            name = segments["file_name"].removesuffix(".png")
            self._photos[name] = image, segments, parts.get(image["id"], [])


class LabelStudio:
    """Predictions for Label Studio: ``label_studio.json`` (tasks), ``label_studio.xml``.

    Each class of a photo is one brush region. A task names its photo below Label Studio's local
    files: ``/data/local-files/?d=<name><suffix>``. Photos of a former export stay.
    """

    def __init__(self, out: str | Path, classes: Sequence[str], colours: np.ndarray) -> None:
        """Open the files; arguments as of `Coco`.

        Raises:
            InputError: the former file is damaged.
        """
        self._path, self._classes = Path(out) / "label_studio.json", classes
        self._colours = ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in colours.tolist()]
        former = read_json(self._path, _WAY_OUT) if self._path.is_file() else []
        self._tasks = {task["data"]["image"]: task for task in former}

    def add(self, name: str, suffix: str, labels: np.ndarray) -> None:
        """Add a photo; arguments as of `Coco.add`."""
        height, width = labels.shape
        size = {"original_width": width, "original_height": height, "image_rotation": 0}
        fixed = {"type": "brushlabels", "from_name": "class", "to_name": "image", **size}
        result = []
        for value in np.unique(labels[labels < len(self._classes)]).tolist():
            runs = brush_runs(labels == value)
            brush = {"format": "rle", "rle": runs, "brushlabels": [self._classes[value]]}
            result.append({"id": f"{value}", **fixed, "value": brush})
        image = f"/data/local-files/?d={quote(name + suffix)}"
        prediction = {"model_version": "eigenseg", "result": result}
        self._tasks[image] = {"data": {"image": image}, "predictions": [prediction]}

    def close(self) -> None:
        """Write the tasks and the labelling configuration."""
        write_json(self._path, [self._tasks[image] for image in sorted(self._tasks)])
        pairs = zip(self._classes, self._colours, strict=False)
        labels = "".join(
            f"    <Label value={quoteattr(name)} background={quoteattr(colour)}/>\n"
            for name, colour in pairs
        )
        write_text(
            self._path.with_suffix(".xml"),
            '<View>\n  <Image name="image" value="$image"/>\n'
            f'  <BrushLabels name="class" toName="image">\n{labels}  </BrushLabels>\n</View>\n',
        )


Writer = Coco | LabelStudio
FORMATS: dict[str, type[Writer]] = {"coco": Coco, "label_studio": LabelStudio}
FILES = ("coco", "label_studio.json", "label_studio.xml")  # what they write below a folder


def brush_runs(mask: np.ndarray) -> list[int]:
    """Encode a mask as Label Studio's brush: the bytes of its run-length code.

    Four channels a pixel, row after row, 255 inside. The bits: 32 for the number of values, 5 for
    the word size less 1, four times 4 for the bits of a length less 1; then for each run a 1, two
    bits that choose the bits of its length, its length less 1, and 8 bits for the value.

    Args:
        mask: bool ``(H, W)``.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = 4 * np.diff(np.append(starts, flat.size))
    most = 1 << _RUN_BITS[-1]
    pieces = -(-lengths // most)
    values = np.repeat(np.where(flat[starts], 255, 0), pieces)
    sizes = np.full(len(values), most)
    sizes[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * most
    kind = np.searchsorted([1 << bits for bits in _RUN_BITS], sizes)
    bits = np.array(_RUN_BITS)[kind]
    words = (((4 | kind) << bits | (sizes - 1)) << 8 | values).astype(np.int64)
    wide = 3 + bits + 8
    header = [(4 * flat.size, 32), (7, 5), *((size - 1, 4) for size in _RUN_BITS)]
    words = np.concatenate([[word for word, _ in header], words])
    wide = np.concatenate([[size for _, size in header], wide])
    place = np.arange(wide.max())[::-1]
    stream = (words[:, None] >> place & 1)[place < wide[:, None]]
    return np.packbits(stream.astype(np.uint8)).tolist()
