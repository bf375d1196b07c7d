"""The door for Python: segment photos with a trained head, and read cached features.

>>> segmenter = Segmenter("data/head")        # any copy of a trained head
>>> result = segmenter("photo.jpg")           # a path, a PIL image or uint8 (H, W, 3)
>>> result.ids, result.classes, result.confidence, result.overlay()
>>> features = Features.open("data/features.zarr")
>>> features.image("last", 0)                 # tokens (rows, columns, C) of the first image
"""

from cache.features import Features
from cache.store.errors import InputError
from eigenseg.segmenter import Result, Segmenter

__all__ = ["Features", "InputError", "Result", "Segmenter"]
