"""What drawn scenes are made of: camera, light, noise, and a canvas of colours with their labels.

World coordinates are metres: x to the right, y up from the ground, z away from the camera. Colours
are linear light, float32 ``(3, 1, 1)`` for one and ``(3, h, w)`` or ``(3, 1, n)`` for many samples:
with the channels in front a shade ``(h, w)`` or ``(n)`` multiplies them as it is, and numpy works
through long rows. Whatever writes colours writes labels through the same mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CLASSES = (
    "sky",
    "mountain",
    "building",
    "road",
    "pavement",
    "grass",
    "tree",
    "water",
    "car",
    "person",
    "pole",
    "sign",
)
(SKY, MOUNTAIN, BUILDING, ROAD, PAVEMENT, GRASS, TREE, WATER, CAR, PERSON, POLE, SIGN) = range(12)
NEAR = 0.6  # m; nothing nearer is drawn
SCALE = 2  # samples per pixel and direction
FAINT = 0.1  # share of a colour left after so much fog that nobody sees it: labelled as sky
_TEXELS, _CELL, _DECAY = 1024, 16, 0.58

Point = Sequence[float] | np.ndarray
Outline = list[tuple[float, float]]  # corners, m
# (u (n), v (n), size of a sample (n), all in m; light (3, 1, 1)) -> colours (3, 1, n)
Material = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """An sRGB colour of 0..255 as linear light ``(3, 1, 1)``."""
    return (tint(red, green, blue) / 255.0) ** 2.2


def tint(red: float, green: float, blue: float) -> np.ndarray:
    """Three factors or amounts of light as ``(3, 1, 1)``."""
    return np.array([red, green, blue], np.float32)[:, None, None]


def mix(first: np.ndarray, second: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """Colours between ``first`` (share 0) and ``second`` (share 1); share: a shade or a number."""
    return first + (second - first) * np.asarray(share, np.float32)


def smooth(low: float, high: float, values: np.ndarray) -> np.ndarray:
    """A ramp from 0 at ``low`` to 1 at ``high`` without kinks, same shape."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def rest(values: np.ndarray, period: float = 1.0) -> np.ndarray:
    """``values % period``, many times faster than numpy's own for floats."""
    turns = values / period
    return (turns - np.floor(turns)) * period


@cache
def _tile(octaves: int) -> np.ndarray:
    """Periodic noise ``(_TEXELS * _TEXELS)`` of one or two octaves; mean 0, std 1 of the first."""
    generator = np.random.default_rng(20260101)
    total = np.zeros((_TEXELS, _TEXELS), np.float32)
    for octave in range(octaves):
        cells = _TEXELS // _CELL << octave  # one random value per cell
        values = generator.normal(size=(cells, cells)).astype(np.float32)
        side = _TEXELS + 8 * _TEXELS // cells
        padded = Image.fromarray(np.pad(values, 4, mode="wrap"))
        tile = np.asarray(padded.resize((side, side), Image.Resampling.BICUBIC))
        edge = (side - _TEXELS) // 2
        tile = tile[edge:-edge, edge:-edge]
        total += _DECAY**octave * (tile - tile.mean()) / tile.std()
    return total.ravel()


def noise(
    u: np.ndarray, v: np.ndarray | np.floating, size: np.ndarray | float = 0.0, octaves: int = 4
) -> np.ndarray:
    """Fractal noise at the points (u, v), about -1..1.

    Args:
        u, v: coordinates in wavelengths of the coarsest octave; shapes that broadcast.
        size: extent of a sample in the same unit: octaves too fine for it fade out (no aliasing).
        octaves: each has half the wavelength and about half the weight of the one before. They are
            looked up two at a time.
    """
    total = np.zeros(np.broadcast_shapes(np.shape(u), np.shape(v)), np.float32)
    finest = coarsest = 0.0
    if np.size(size):
        finest, coarsest = float(np.min(size)), float(np.max(size))
    for octave in range(0, octaves, 2):
        frequency, together = 2.0**octave, min(2, octaves - octave)
        steep = (2.0, 3.0)[together - 1] * frequency
        if steep * finest >= 1.6:
            break
        # The offset keeps indices positive: the cast rounds towards zero, which is a seam at 0.
        column = (u * (frequency * _CELL) + (2.0**20 + 131 * octave)).astype(np.int32)
        row = (v * (frequency * _CELL) + (2.0**20 + 57 * octave)).astype(np.int32)
        texel = (row & (_TEXELS - 1)) * np.int32(_TEXELS) + (column & (_TEXELS - 1))
        octave_values = _tile(together).take(texel)
        weight: np.ndarray | float = 0.45 * _DECAY**octave
        if steep * coarsest > 0.6:
            weight = np.clip(1.6 - steep * np.asarray(size, np.float32), 0, 1) * np.float32(weight)
        total += weight * octave_values
    return total


@dataclass(frozen=True)
class Camera:
    """A camera that looks along z; lengths in samples of the canvas except ``height`` (m)."""

    focal: float
    centre: float
    horizon: float
    height: float


@dataclass(frozen=True)
class Light:
    """Sun, sky, weather and season of one scene; colours ``(3, 1, 1)``."""

    sun: np.ndarray  # unit vector ``(3,)`` towards the sun
    direct: np.ndarray
    ambient: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    clouds: float  # 0 = clear .. 1 = overcast
    haze: float  # share of light lost per metre
    foliage: tuple[np.ndarray, ...]
    grass: np.ndarray
    bare: float = 0.0  # share of trees without leaves
    snow: float = 0.0  # share of the ground that is white
    wet: float = 0.0
    rain: float = 0.0
    lamps: float = 0.0  # share of windows that are lit

    @property
    def reach(self) -> float:
        """How far one sees, m: of what is farther off, fog leaves less than the share FAINT."""
        return float(-np.log(FAINT)) / self.haze

    def on(self, normal: np.ndarray) -> np.ndarray:
        """Light ``(3, 1, 1)`` that falls on a surface with this unit normal."""
        open_sky = 0.72 + 0.28 * float(normal[1])
        return self.ambient * open_sky + self.direct * max(0.0, float(normal @ self.sun))


class Canvas:
    """Colours and labels of one scene at ``SCALE`` samples a pixel, painted from far to near."""

    def __init__(self, height: int, width: int, camera: Camera, light: Light) -> None:
        self.height, self.width = height * SCALE, width * SCALE
        self.camera, self.light = camera, light
        self.colour = np.zeros((3, self.height, self.width), np.float32)
        self.labels = np.full((self.height, self.width), SKY, np.uint8)

    def project(self, point: Point) -> tuple[float, float]:
        """Column and row of a world point (x, y, z) with z >= NEAR."""
        camera, (x, y, z) = self.camera, point
        scale = camera.focal / z
        return camera.centre + scale * x, camera.horizon + scale * (camera.height - y)

    def rays(self, window: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        """Directions (dx, dy, 1) of the samples in a window: dx ``(1, w)``, dy ``(h, 1)``."""
        rows, columns = window
        x = np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5
        y = np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5
        camera = self.camera
        dx, dy = (x - camera.centre) / camera.focal, (camera.horizon - y) / camera.focal
        return dx[None], dy[:, None]

    def window(self, points: Sequence[Point]) -> tuple[slice, slice] | None:
        """The part of the canvas around projected points; None where nothing is visible."""
        columns, rows = zip(*points, strict=True)
        left, right = max(0, int(min(columns)) - 1), min(self.width, int(max(columns)) + 2)
        top, bottom = max(0, int(min(rows)) - 1), min(self.height, int(max(rows)) + 2)
        return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None

    def patch(
        self, x: float, y: float, z: float, wide: float, high: float
    ) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray] | None:
        """An upright window that faces the camera, ``wide`` around x and ``high`` above y.

        Returns:
            The window and the offsets from (x, y) of its samples, m: ``(1, w)`` and ``(h, 1)``.
        """
        corners = [(x - wide / 2, y, z), (x + wide / 2, y + high, z)]
        window = self.window([self.project(corner) for corner in corners])
        if window is None or z < NEAR:
            return None
        dx, dy = self.rays(window)
        x, y, z = float(x), float(y), float(z)  # numpy's own would make float64 of all
        return window, dx * z - x, dy * z + self.camera.height - y

    def fog(self, colour: np.ndarray, z: np.ndarray | float) -> np.ndarray:
        """Colours as seen through z metres of air (z a number or as many as samples)."""
        return mix(self.light.horizon, colour, np.exp(-self.light.haze * np.asarray(z, np.float32)))

    def paint(
        self,
        window: tuple[slice, slice],
        mask: np.ndarray,
        colour: np.ndarray,
        label: int,
        z: float,
    ) -> None:
        """Put colours ``(3, h, w)`` or ``(3, 1, 1)``, seen from z m, and the label in the mask."""
        np.copyto(self.colour[:, *window], self.fog(colour, z), where=mask)
        self.labels[window][mask] = label

    def put(self, samples: np.ndarray, colour: np.ndarray, label: int, z: np.ndarray) -> None:
        """Put colours ``(3, 1, n)`` or ``(3, 1, 1)`` and the label at ``samples`` ``(n)``.

        Args:
            samples: places in the flattened canvas.
            z: distances ``(n)``, m.
        """
        for channel, values in zip(self.colour, self.fog(colour, z), strict=True):
            channel.ravel()[samples] = values.ravel()
        self.labels.ravel()[samples] = label

    def polygon(self, points: Sequence[Point], window: tuple[slice, slice]) -> np.ndarray:
        """Mask of a polygon of projected points inside a window."""
        rows, columns = window
        mask = Image.new("L", (columns.stop - columns.start, rows.stop - rows.start))
        shifted = [(column - columns.start, row - rows.start) for column, row in points]
        ImageDraw.Draw(mask).polygon(shifted, fill=1)
        return np.asarray(mask, dtype=bool)

    def plane(
        self,
        origin: Point,
        along: Point,
        up: Point,
        outline: Sequence[tuple[float, float]],
        material: Material,
        label: int,
    ) -> None:
        """Paint a flat polygon anywhere in the world.

        Args:
            origin: world point where (u, v) is (0, 0).
            along, up: orthogonal unit vectors of u and v.
            outline: corners (u, v), m.
            material: gives the colours of its samples.
        """
        start, a, b = (np.array(values, np.float64) for values in (origin, along, up))
        corners = clip_near([start + u * a + v * b for u, v in outline])
        if len(corners) < 3:
            return
        points = [self.project(corner) for corner in corners]
        window = self.window(points)
        if window is None:
            return
        row, column = np.nonzero(self.polygon(points, window))
        across, down = self.rays(window)
        dx, dy = across[0, column], down[row, 0]
        normal = a[[1, 2, 0]] * b[[2, 0, 1]] - a[[2, 0, 1]] * b[[1, 2, 0]]  # the cross product
        start = start - (0, self.camera.height, 0)
        facing = normal if normal @ start < 0 else -normal
        normal, a, b = (values.tolist() for values in (normal, a, b))  # numbers keep float32
        slope = normal[0] * dx + normal[1] * dy + normal[2]
        slope = np.where(np.abs(slope) < 1e-6, np.float32(1e-6), slope)
        z = np.clip(float(start @ normal) / slope, NEAR / 2, 1e4)
        u = z * (a[0] * dx + a[1] * dy + a[2]) - float(start @ a)
        v = z * (b[0] * dx + b[1] * dy + b[2]) - float(start @ b)
        colour = material(u, v, z / self.camera.focal, self.light.on(facing))
        samples = (row + window[0].start) * self.width + (column + window[1].start)
        self.put(samples, colour, label, z)

    def shade(self, shadows: Sequence[tuple[Sequence[Outline], float]]) -> None:
        """Darken what is painted inside ground polygons of corners (x, z), by a share each."""
        left = np.ones((self.height // SCALE, self.width // SCALE), np.float32)
        for outlines, strength in shadows:
            mask = Image.new("L", (left.shape[1], left.shape[0]))
            draw = ImageDraw.Draw(mask)
            for outline in outlines:
                corners = clip_near([np.array([x, 0.0, z]) for x, z in outline])
                if len(corners) >= 3:
                    points = [self.project(corner) for corner in corners]
                    draw.polygon([(x / SCALE, y / SCALE) for x, y in points], fill=255)
            soft = mask.filter(ImageFilter.GaussianBlur(0.8))
            left *= 1 - strength / 255 * np.asarray(soft, np.float32)
        top = int(np.argmax((left < 1).any(axis=1)))  # no shadow lies above this row
        seen = mix(tint(0.0, 0.04, 0.14), tint(1, 1, 1), left[top:])
        for row, column in np.ndindex(SCALE, SCALE):
            self.colour[:, top * SCALE + row :: SCALE, column::SCALE] *= seen


def clip_near(points: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Cut the part of a polygon of world points off that is nearer than NEAR."""
    kept = []
    for first, second in zip(points, [*points[1:], *points[:1]], strict=True):
        if first[2] >= NEAR:
            kept.append(first)
        if (first[2] >= NEAR) != (second[2] >= NEAR):
            share = (NEAR - first[2]) / (second[2] - first[2])
            kept.append(first + share * (second - first))
    return kept


def disc(x: float, z: float, wide: float, long: float) -> Outline:
    """The outline (x, z) of an ellipse on the ground with these half axes, m."""
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    return [(x + wide * float(np.cos(t)), z + long * float(np.sin(t))) for t in turn]


def box(wide: float, high: float) -> Outline:
    """A rectangle (u, v) with one corner at (0, 0), m."""
    return [(0, 0), (wide, 0), (wide, high), (0, high)]


def bar(x: float, y: float, wide: float, high: float) -> Outline:
    """A rectangle around (x, y), m."""
    return [(x + a * wide / 2, y + b * high / 2) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]


def flat(colour: np.ndarray) -> Material:
    """A material of one colour with a little grain."""

    def material(u: np.ndarray, v: np.ndarray, size: np.ndarray, on: np.ndarray) -> np.ndarray:
        return colour * on * (1 + 0.2 * noise(u * 8, v * 8, size * 8, 2))

    return material


def limb(
    canvas: Canvas,
    x: float,
    z: float,
    joints: Sequence[tuple[float, float]],
    thick: tuple[float, float],
    colour: np.ndarray,
    label: int,
) -> None:
    """A round limb from one joint to the next, joints (dx, y) in m, radii ``thick`` at its ends.

    It is lit like a cylinder: bright towards the sun, dark at its far rim.
    """
    (x0, y0), (x1, y1) = joints
    reach = max(thick) + z / canvas.camera.focal  # of its rim, and a sample more
    left, low = min(x0, x1) - reach, min(y0, y1) - reach
    wide, high = abs(x1 - x0) + 2 * reach, abs(y1 - y0) + 2 * reach
    found = canvas.patch(x + left + wide / 2, low, z, wide, high)
    if found is None:
        return
    window, dx, dy = found
    px, py = dx + (left + wide / 2) - x0, dy + low - y0
    ax, ay = x1 - x0, y1 - y0
    share = np.clip((px * ax + py * ay) / max(ax * ax + ay * ay, 1e-9), 0, 1)
    radius = thick[0] + (thick[1] - thick[0]) * share
    off_x, off_y = (px - share * ax) / radius, (py - share * ay) / radius
    distance = off_x**2 + off_y**2
    sun = canvas.light.sun
    face = np.sqrt(np.clip(1 - distance, 0, 1))
    lit = np.clip(off_x * sun[0] + off_y * sun[1] - face * sun[2], 0, 1)
    folds = 1 + 0.3 * noise(px * 9 + x, py * 5 + z, 9 * z / canvas.camera.focal, 2)
    open_sky = np.clip(0.55 + 0.3 * face + 0.2 * off_y, 0.2, 1)
    light = canvas.light.ambient * open_sky + canvas.light.direct * lit
    # A limb thinner than a sample still hits one in each row: thin things don't dissolve.
    thin = max(1.0, 0.55 * z / canvas.camera.focal / max(min(thick), 1e-3))
    canvas.paint(window, distance < thin**2, colour * folds * light, label, z)
