"""Rounded things of drawn scenes: many small flat faces, projected and lit all at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from demo.draw.canvas import NEAR, Canvas


class Faces(NamedTuple):
    """m flat faces of four corners each."""

    corners: np.ndarray  # (m, 4, 3), m; a solid's run clockwise seen from outside
    colour: np.ndarray  # albedo, linear light (m, 3)
    gloss: np.ndarray  # (m): share of the sky mirrored where a face is seen at a right angle
    layer: np.ndarray  # (m): painted in this order; inside one layer the farthest first
    solid: np.ndarray  # bool (m): seen from outside alone

    @classmethod
    def of(
        cls,
        corners: np.ndarray,
        colour: np.ndarray,
        gloss: np.ndarray | float,
        layer: int,
        solid: bool = False,
    ) -> Faces:
        """Faces of one layer; ``colour`` and ``gloss`` one for all, or one a face."""
        count = len(corners)
        return cls(
            corners,
            np.broadcast_to(colour.reshape(-1, 3), (count, 3)),
            np.broadcast_to(gloss, count),
            np.full(count, layer),
            np.full(count, solid),
        )


def joined(parts: list[Faces]) -> Faces:
    """All faces of some parts."""
    return Faces(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def loft(rings: np.ndarray, closed: bool) -> np.ndarray:
    """Faces ``(s - 1, k or k - 1, 4, 3)`` between rings of points ``(s, k, 3)``.

    Args:
        rings: one behind the other along z; each runs anticlockwise seen from z = 0.
        closed: each ring's last point is joined with its first.
    """
    following = np.roll(rings, -1, axis=1)
    if not closed:
        rings, following = rings[:, :-1], following[:, :-1]
    return np.stack([rings[:-1], following[:-1], following[1:], rings[1:]], axis=2)


def wheel(middle: np.ndarray, radius: float) -> np.ndarray:
    """A disc ``(8, 4, 3)`` of this radius around ``middle`` ``(3,)``, upright and along z."""
    turn = np.arange(17) * np.pi / 8
    rim = middle + radius * np.stack([0 * turn, np.sin(turn), np.cos(turn)], axis=1)
    hub = np.broadcast_to(middle, (8, 3))
    return np.stack([hub, rim[:-1:2], rim[1::2], rim[2::2]], axis=1)


def paint_faces(canvas: Canvas, faces: Faces, label: int) -> None:
    """Light the faces, and paint those that face the camera."""
    shifted = faces.corners - np.array([0, canvas.camera.height, 0])
    normal = np.cross(shifted[:, 2] - shifted[:, 0], shifted[:, 3] - shifted[:, 1])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    middle = shifted.mean(axis=1)
    view = middle / np.linalg.norm(middle, axis=1, keepdims=True)
    cosine = -(normal * view).sum(axis=1)
    shown = ((cosine > 0) | ~faces.solid) & (shifted[..., 2].min(axis=1) >= NEAR)
    if not shown.any():
        return
    normal *= np.where(cosine < 0, -1, 1)[:, None]
    colour = _lit(canvas, faces, normal, view, np.abs(cosine))
    order = np.lexsort((-middle[:, 2], faces.layer))
    _stamp(canvas, shifted, order[shown[order]], colour, label)


def _lit(
    canvas: Canvas, faces: Faces, normal: np.ndarray, view: np.ndarray, cosine: np.ndarray
) -> np.ndarray:
    """Colours ``(m, 3)`` of faces: diffuse light and a mirrored sky, stronger at flat angles."""
    light = canvas.light
    ambient, direct, horizon, zenith = (
        values.reshape(1, 3)
        for values in (light.ambient, light.direct, light.horizon, light.zenith)
    )
    above = 0.62 + 0.38 * normal[:, 1:2]
    diffuse = ambient * above + direct * np.clip(normal @ light.sun, 0, None)[:, None]
    mirrored = view + 2 * cosine[:, None] * normal
    up = np.clip(mirrored[:, 1:2] * 2.5 + 0.25, 0, 1)  # the sky, or the dark ground
    seen = up * (horizon + (zenith - horizon) * np.clip(mirrored[:, 1:2], 0, 1)) + (1 - up) * 0.04
    spot = np.clip(mirrored @ light.sun, 0, 1)[:, None] ** 60 * direct * 3
    share = faces.gloss * (1 + 8 * (1 - cosine) ** 4)
    return faces.colour * diffuse + np.minimum(share, 0.6)[:, None] * (seen + spot)


def _stamp(
    canvas: Canvas, corners: np.ndarray, order: np.ndarray, colour: np.ndarray, label: int
) -> None:
    """Paint faces ``(m, 4, 3)``, relative to the camera, in the order of the indices ``order``."""
    camera, z = canvas.camera, corners[..., 2]
    scale = camera.focal / np.maximum(z, NEAR)
    points = np.stack(
        [camera.centre + scale * corners[..., 0], camera.horizon - scale * corners[..., 1]], axis=2
    )
    window = canvas.window(points[order].reshape(-1, 2).tolist())
    if window is None:
        return
    rows, columns = window
    number = Image.new("I", (columns.stop - columns.start, rows.stop - rows.start))
    draw = ImageDraw.Draw(number)
    points = points - (columns.start, rows.start)
    for face in order.tolist():
        draw.polygon(points[face].ravel().tolist(), fill=face + 1)
    row, column = np.nonzero(np.asarray(number))
    face = np.asarray(number)[row, column] - 1
    samples = (row + rows.start) * canvas.width + column + columns.start
    shown = colour.astype(np.float32).T[:, None, face]
    canvas.put(samples, shown, label, z.mean(axis=1).astype(np.float32)[face])
