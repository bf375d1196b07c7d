"""What a drawn scene stands on and before: sky, mountains, wooded hills, ground and water.

What fog swallows is not painted: the sky stays there, in the picture and in the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from demo.draw.canvas import (
    GRASS,
    MOUNTAIN,
    PAVEMENT,
    ROAD,
    SCALE,
    SKY,
    TREE,
    WATER,
    Canvas,
    Outline,
    mix,
    noise,
    rest,
    rgb,
    smooth,
)

Shift = tuple[float, float]
SNOW = rgb(236, 240, 248)


def sky(canvas: Canvas, shift: Shift) -> None:
    """Paint the sky: gradient, glow around the sun, clouds; below the horizon its last row."""
    light = canvas.light
    level = min(canvas.height, SCALE * (max(0, int(canvas.camera.horizon)) // SCALE + 1))
    dx, dy = canvas.rays((slice(0, level), slice(0, canvas.width)))
    dx, height = dx[:, ::SCALE], np.maximum(dy[::SCALE], 0)  # one sample a pixel: it is smooth
    colour = mix(light.horizon, light.zenith, smooth(0, 0.75, height) ** 0.6)
    length = np.sqrt(dx * dx + height * height + 1)
    near_sun = np.clip((dx * light.sun[0] + height * light.sun[1] + light.sun[2]) / length, 0, 1)
    glow = near_sun**24 * 0.5 + near_sun**400 * 3.0
    colour = colour + light.direct * (glow * (1 - 0.9 * light.clouds))
    distance = 1 / (height + 0.09)  # clouds lie on a plane overhead
    u, v = dx * distance * 0.45 + shift[0], distance * 0.55 + shift[1]
    shape = noise(u, v, octaves=6)
    cover = smooth(0.62 - 1.3 * light.clouds, 1.1 - 1.3 * light.clouds, shape + 0.15)
    lit = noise(u + 0.25 * float(light.sun[0]) + 0.05, v - 0.22, octaves=4)
    bright = light.ambient * 0.75 + light.direct * 0.55
    grey = light.ambient * 0.42 + light.direct * 0.06
    cloud = mix(bright, grey, smooth(-0.5, 0.9, 0.6 * shape + 0.5 * lit + 0.4 * light.clouds))
    cover = cover * smooth(0, 0.06, height) * 0.92
    seen = mix(colour, cloud, cover).repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    canvas.colour[:, :level] = seen
    canvas.colour[:, level:] = seen[:, -1:]
    canvas.labels[:] = SKY


def _profile(x: np.ndarray, row: float, octaves: int) -> np.ndarray:
    """Like `noise` along a line x ``(1, w)``, but without steps however far it is enlarged."""
    total = np.zeros_like(x)
    for octave in range(octaves):
        places = x * 2.0**octave
        first, last = int(places.min() * 8) - 1, int(places.max() * 8) + 3
        knots = (np.arange(first, last, dtype=np.float32) + 0.5) / 8
        heights = noise(knots, np.full_like(knots, row + 3.7 * octave), octaves=1)
        total += 0.58**octave * np.interp(places, knots, heights)
    return total


def _ridge(canvas: Canvas, shift: Shift, waves: float, octaves: int) -> np.ndarray:
    """A line ``(1, width)`` of fractal heights, about 0..1."""
    x = np.arange(canvas.width, dtype=np.float32)[None] / canvas.width * waves
    return np.clip(0.5 + 0.55 * _profile(x + shift[0], shift[1], octaves), 0, 1)


def mountains(canvas: Canvas, shift: Shift, top: float, z: float, rock: np.ndarray) -> None:
    """Paint a range of mountains at the horizon.

    Args:
        top: height of the highest summits in the picture, as a share of the canvas.
        z: distance, m.
        rock: its colour.
    """
    if z > canvas.light.reach:
        return
    base = canvas.camera.horizon + 3
    # 1 - |noise| has sharp crests and round valleys, as mountains have.
    x = np.arange(canvas.width, dtype=np.float32)[None] / canvas.width * 1.6 + shift[0]
    crest = 1 - 1.5 * np.abs(_profile(x, shift[1], 5))
    line = base - canvas.height * top * np.clip(crest + 0.05 * _profile(x * 9, 5.0, 3), 0.1, 1.2)
    window = (
        slice(max(0, int(line.min())), min(canvas.height, int(base) + 1)),
        slice(0, line.size),
    )
    rows = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None]
    mask = (rows >= line) & (rows <= base)
    x = np.arange(canvas.width, dtype=np.float32)[None] / canvas.height
    y = rows / canvas.height
    # Relief: the difference of two samples of one height field is a slope towards the sun.
    u, v = x * 7 + shift[0] + 0.8 * (y - line / canvas.height), y * 4.5 + shift[1]
    step = 0.07 if canvas.light.sun[0] > 0 else -0.07
    slope = noise(u, v, octaves=6) - noise(u + step, v - 0.05, octaves=6)
    light = canvas.light
    sunlit = np.clip(0.45 + 1.9 * slope, 0.05, 1.2)
    high = (base - rows) / (canvas.height * max(top, 0.05)) + 0.2 * noise(u, v, octaves=4)
    cover = smooth(0.78 - 0.5 * light.snow, 0.9 - 0.5 * light.snow, high)
    wood = mix(light.grass * 0.6, rock, smooth(0.12, 0.4, high))
    colour = mix(wood, SNOW, cover) * light.ambient * 0.85
    colour = colour + mix(wood, SNOW, cover) * light.direct * sunlit * 0.8
    canvas.paint(window, mask, colour, MOUNTAIN, z)


def woods(canvas: Canvas, shift: Shift, top: float, z: float, waves: float) -> None:
    """Paint a wooded hill: crowns in rows that get smaller towards its top. Label: tree."""
    if z > canvas.light.reach:
        return
    base = canvas.camera.horizon + canvas.camera.focal * canvas.camera.height / z + 2
    crown = canvas.camera.focal * 5 / z  # samples per crown
    line = base - canvas.height * top * (0.25 + 0.75 * _ridge(canvas, shift, waves, 3))
    x = np.arange(canvas.width, dtype=np.float32)[None]
    tops = noise(x / crown + shift[0], np.float32(shift[1]), octaves=2)
    tops = np.sqrt(np.abs(tops) + 0.02) + 0.5 * noise(x / crown * 4, np.float32(3.3), octaves=3)
    line = line - crown * tops
    top_row = max(0, int(line.min()))
    window = (slice(top_row, max(top_row + 1, min(canvas.height, int(base)))), slice(0, x.size))
    y = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None]
    u, v = x / crown + shift[0], (y - 0.6 * line) / crown * 1.1 + shift[1]
    clumps = np.abs(noise(u, v, octaves=2)) * 1.4  # |noise| has dark creases between bumps
    leaves = noise(u * 4, v * 4, octaves=4)
    lit = np.clip(0.25 + 0.75 * clumps + 0.35 * leaves, 0.05, 1.3)
    light = canvas.light
    kind = smooth(-0.3, 0.5, noise(u * 0.31, v * 0.31, octaves=2))
    green = mix(light.foliage[0], light.foliage[-1], kind) * 0.8
    green = mix(green, SNOW, 0.5 * light.snow * smooth(0.4, 1.0, clumps + 0.5 * leaves))
    colour = green * lit * (light.ambient * 0.8 + light.direct * 0.6)
    canvas.paint(window, y >= line, colour, TREE, z)


def hills(canvas: Canvas, shift: Shift, top: float, z: float) -> None:
    """Paint a rolling hill of meadows, fields and hedges. Label: grass."""
    if z > canvas.light.reach:
        return
    base = canvas.camera.horizon + canvas.camera.focal * canvas.camera.height / z + 2
    line = base - canvas.height * top * (0.15 + 0.85 * _ridge(canvas, shift, 1.3, 2))
    window = (slice(max(0, int(line.min())), min(canvas.height, int(base))), slice(0, line.size))
    y = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None]
    x = np.arange(canvas.width, dtype=np.float32)[None] / canvas.width
    depth = (y - line) / canvas.height  # fields follow the slope
    light = canvas.light
    field = noise(x * 3 + shift[0], depth * 14 + shift[1], octaves=2)
    hedge = np.abs(noise(x * 4 + shift[1], depth * 18 + shift[0], octaves=1)) < 0.05
    grain = 1 + 0.5 * noise(x * 90, y / canvas.height * 150, octaves=3)
    colour = mix(light.grass, rgb(168, 152, 92), smooth(0.0, 0.15, field))
    colour = np.where(hedge, light.foliage[0] * 0.6, colour) * grain
    colour = mix(colour, SNOW, 0.8 * light.snow) * light.on(np.array([0.0, 0.9, -0.4]))
    canvas.paint(window, y >= line, colour, GRASS, z)


@dataclass(frozen=True)
class Strip:
    """A road or way along z: its middle is at x + bend z^2 + swing sin(z / 18); lengths in m."""

    x: float
    half: float
    bend: float = 0.0
    swing: float = 0.0

    def middle(self, z: np.ndarray | float) -> np.ndarray:
        """x of the middle at distance z, same shape."""
        z = np.minimum(np.asarray(z, np.float32), 250.0)
        return self.x + self.bend * z * z + self.swing * np.sin(z / 18)


class Ground:
    """The plane y = 0 below the horizon: world coordinates of its samples, and how to fill it.

    ``samples`` ``(n)`` are places in the flattened canvas and x, z ``(n)`` their coordinates in m:
    what covers little costs little. It ends where fog hides it.
    """

    def __init__(self, canvas: Canvas, shift: Shift) -> None:
        self.canvas = canvas
        camera = canvas.camera
        last = camera.horizon + camera.focal * camera.height / canvas.light.reach
        top = min(canvas.height - 1, max(0, int(np.ceil(max(last, camera.horizon + 1)))))
        dx, dy = canvas.rays((slice(top, canvas.height), slice(0, canvas.width)))
        z = camera.height / np.maximum(-dy, 1e-4)  # (h, 1)
        self.samples = np.arange(top * canvas.width, canvas.labels.size)
        self.light = canvas.light.on(np.array([0.0, 1.0, 0.0]))
        self.shift = shift
        self._place((dx * z).ravel(), np.repeat(z.ravel(), canvas.width))

    def _place(self, x: np.ndarray, z: np.ndarray) -> None:
        self.x, self.z = x, z
        # A sample is much longer in z than in x; the geometric mean keeps texture without moire.
        self.flat = self.z / self.canvas.camera.focal
        self.size = self.flat * np.sqrt(np.maximum(self.z / self.canvas.camera.height, 1))
        self.u, self.v = self.x + 100 * self.shift[0], self.z + 100 * self.shift[1]

    def part(self, inside: np.ndarray) -> Ground:
        """The samples where ``inside`` ``(n)`` holds."""
        other = copy(self)
        other.samples = self.samples[inside]
        other._place(self.x[inside], self.z[inside])
        return other

    def noise(self, wavelength: float, octaves: int, long: float = 1.0) -> np.ndarray:
        """Noise ``(n)`` of a wavelength in m, ``long`` times as long in z."""
        size = self.size / float(wavelength * np.sqrt(long))
        return noise(self.u / wavelength, self.v / wavelength / long, size, octaves)

    def upright(self, wavelength: float, octaves: int, tall: float = 1.0) -> np.ndarray:
        """Noise ``(n)`` of things that stand up, such as blades: no flatter when seen from low."""
        v = np.log(self.z) * float(self.canvas.camera.height / wavelength / tall) + self.shift[1]
        return noise(self.u / wavelength, v, self.flat / wavelength, octaves)

    def paint(self, colour: np.ndarray, label: int) -> None:
        """Give all samples their albedo ``(3, 1, n)`` and the label."""
        self.canvas.put(self.samples, colour * self.light, label, self.z)

    def snowed(self, colour: np.ndarray, share: float) -> np.ndarray:
        """Colours ``(3, 1, n)`` under patchy snow."""
        if not self.canvas.light.snow:
            return colour
        cover = smooth(-0.5, 0.1, self.noise(2.5, 4) + 1.4 * share * self.canvas.light.snow - 0.6)
        return mix(colour, SNOW * (1 + 0.06 * self.noise(0.8, 3)), cover)


def meadow(ground: Ground, flowers: float) -> None:
    """Fill all of the ground with grass: tufts, dry patches, far fields, flowers (0..1)."""
    green = ground.canvas.light.grass
    dry = mix(green, rgb(150, 138, 84), 0.55)
    fields = np.sign(ground.noise(60, 2, 0.6)) * smooth(25, 90, ground.z)
    colour = mix(green, dry, smooth(-0.3, 0.9, ground.noise(6, 2) + 0.45 * fields))
    blades = ground.upright(0.1, 4, 0.65)
    tufts = ground.upright(0.6, 2, 0.6)
    colour = colour * np.clip(1 + 0.75 * blades + 0.5 * tufts, 0.12, 2.2)
    if flowers:
        bloom = (ground.upright(0.09, 2) > 0.95 - 0.3 * flowers) & (ground.noise(4, 2) > -0.1)
        yellow = ground.noise(0.9, 1) > 0
        petals = np.where(yellow, rgb(236, 216, 70), rgb(238, 236, 244))
        colour = np.where(bloom, petals, colour)
    ground.paint(ground.snowed(colour, 1.0), GRASS)


def asphalt(ground: Ground, strip: Strip, tone: float, dashes: float) -> None:
    """A road of asphalt: grain, tracks, patches, cracks, lines at its edges and its middle.

    Args:
        tone: its sRGB grey, 0..255.
        dashes: period of the middle line, m.
    """
    ground = ground.part(np.abs(ground.x - strip.middle(ground.z)) < strip.half)
    across = ground.x - strip.middle(ground.z)
    light = ground.canvas.light
    tracks = np.cos(across / strip.half * 2 * np.pi) * 0.1
    patch = 0.16 * np.sign(ground.noise(5, 1, 2.5) - 0.75)
    grain = 0.36 * ground.noise(0.07, 2) + 0.18 * ground.noise(1.3, 4, 4) + tracks + patch
    crack = smooth(0.05, 0.0, np.abs(ground.noise(3, 4, 1.5))) * smooth(26, 8, ground.z)
    colour = rgb(tone, tone, tone * 1.03) * np.clip(1 + grain - 0.4 * crack, 0.3, 2)
    colour = colour * (1 - 0.45 * light.wet)
    thick = np.maximum(0.07, ground.flat * 0.7)
    worn = ground.noise(0.5, 2) > -0.75
    middle = (np.abs(across) < thick) & (rest(ground.v, dashes) < 0.55 * dashes) & worn
    edge = (np.abs(np.abs(across) - strip.half + 0.35) < thick * 0.8) & worn
    colour = np.where((middle | edge), rgb(205, 203, 194), colour)
    colour = ground.snowed(colour, 0.35)
    shine = light.wet * (0.25 + 0.5 * smooth(0.0, 0.6, ground.noise(2.2, 3, 3)))
    mirror = shine * np.clip(ground.z / 30, 0.12, 1)
    ground.paint(mix(colour, light.horizon / ground.light, mirror), ROAD)


def dirt(ground: Ground, strip: Strip, earth: np.ndarray) -> None:
    """A way of earth and gravel with two tracks and a ragged edge. Label: road."""
    ground = ground.part(np.abs(ground.x - strip.middle(ground.z)) < 1.5 * strip.half)
    across = np.abs(ground.x - strip.middle(ground.z))
    ground = ground.part(across < strip.half * (1 + 0.3 * ground.upright(0.6, 4)))
    across = np.abs(ground.x - strip.middle(ground.z))
    rut = smooth(0.3, 0.0, np.abs(across - 0.55 * strip.half))
    grain = 0.45 * ground.noise(0.12, 3) + 0.25 * ground.noise(1.1, 3) + 0.15 * rut
    colour = earth * np.clip(1 + grain, 0.3, 2)
    ground.paint(ground.snowed(colour, 0.5), ROAD)


def crossing(ground: Ground, strip: Strip, z: float) -> None:
    """White bars of a zebra crossing at distance z, on a road that is painted already."""
    ground = ground.part(np.abs(ground.z - z) < 1.6)
    across = ground.x - strip.middle(ground.z)
    bars = (np.abs(across) < strip.half - 0.4) & (rest(across) < 0.5)
    ground = ground.part(bars & (ground.noise(0.5, 3) > -0.7))
    ground.paint(rgb(208, 206, 200), ROAD)


def pavement(ground: Ground, strip: Strip, inner: float, outer: float, stone: np.ndarray) -> None:
    """Slabs from ``inner`` to ``outer`` metres off the strip's middle, with a kerb at ``inner``.

    Negative offsets lie to the left.
    """
    side, near, far = np.sign(outer), abs(inner), abs(outer)
    across = (ground.x - strip.middle(ground.z)) * side
    ground = ground.part((across >= near) & (across < far))
    across = (ground.x - strip.middle(ground.z)) * side - near
    a, b = across / 0.6, ground.v / 0.6
    cell = noise(np.floor(a) * 1.37 + 0.2, np.floor(b) * 1.91 + 0.7, octaves=1) * 0.28
    fine = smooth(0.35, 0.1, ground.size)
    gap = np.maximum(np.abs(rest(a) - 0.5), np.abs(rest(b) - 0.5)) > 0.46
    grain = 0.3 * ground.noise(0.1, 2) + 0.22 * ground.noise(1.8, 4) + cell * fine
    colour = stone * np.clip(1 + grain - 0.42 * gap * fine, 0.3, 2)
    kerb = stone * 1.25 * (1 + 0.15 * ground.noise(0.4, 2))
    colour = np.where((across < 0.16), kerb, colour)
    colour = np.where((across < 0.04), colour * 0.35, colour)
    colour = colour * (1 - 0.35 * ground.canvas.light.wet)
    ground.paint(ground.snowed(colour, 0.6), PAVEMENT)


def lake(
    ground: Ground, middle: tuple[float, float], axes: tuple[float, float], road: Strip
) -> None:
    """A lake that mirrors what is painted behind it; it keeps off the road.

    Args:
        middle, axes: its middle (x, z) and its half axes across and along, m.
    """
    (x, z), (wide, long) = middle, axes
    ground = ground.part(np.abs(ground.z - z) < 1.7 * long)  # the rest can't lie in it
    away = ((ground.x - x) / wide) ** 2 + ((ground.z - z) / long) ** 2 + 0.5 * ground.noise(14, 4)
    dry = (ground.x - road.middle(ground.z)) * np.sign(-x) + road.half + 3 + ground.noise(5, 3)
    away = np.maximum(away, 1 + 0.2 * dry)
    shore = ground.part((away >= 1) & (away < 1.05 + 0.6 / wide))
    grain = np.clip(1 + 0.5 * shore.noise(0.3, 3), 0.3, 2)
    shore.paint(rgb(132, 118, 92) * grain, GRASS)
    ground, canvas = ground.part(away < 1), ground.canvas
    if not ground.samples.size:
        return
    row, column = np.divmod(ground.samples, canvas.width)
    waves = ground.noise(0.5, 4, 1.0) * np.clip(9 / ground.z, 0.12, 0.6)
    # Far waves are seen at a grazing angle: they smear the mirror image up and down. What stands
    # behind the lake is mirrored at its far shore.
    smear = 12 * waves + 3 * noise(row / 3.0, row * 0.0, octaves=1)
    up = np.clip(2 * row[0] - row + smear, 0, canvas.height - 1).astype(np.intp)
    along = np.clip(column + 5 * waves, 0, canvas.width - 1).astype(np.intp)
    image = canvas.colour[:, None, up, along]
    deep = rgb(28, 58, 62) * ground.light
    mirror = np.clip(0.35 + 0.5 * smooth(2, 40, ground.z) + 0.5 * waves, 0, 0.95)
    colour = mix(deep, image, mirror) * (1 + 0.5 * waves)
    canvas.put(ground.samples, colour, WATER, ground.z * 0.3)


def shadows(canvas: Canvas, contacts: Sequence[Outline], cast: Sequence[Outline]) -> None:
    """Darken the ground under things, and where they keep the sun off; outlines of (x, z)."""
    light = canvas.light
    sun = light.direct.sum() * float(light.sun[1])
    cut = float(0.92 * sun / (sun + light.ambient.sum()))
    canvas.shade([(contacts, 0.5), (cast, cut)])
