"""Drawn scenes with exact labels: streets and landscapes under changing light and weather.

One scene = one generator: light and season, a camera, a ground, and things on it that are painted
from far to near. Labels come from the masks that paint the colours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from demo.draw.buildings import house, row_house
from demo.draw.canvas import (
    SCALE,
    Camera,
    Canvas,
    Light,
    Outline,
    disc,
    mix,
    rgb,
    tint,
)
from demo.draw.cars import car
from demo.draw.grounds import (
    Ground,
    Strip,
    asphalt,
    crossing,
    dirt,
    hills,
    lake,
    meadow,
    mountains,
    pavement,
    shadows,
    sky,
    woods,
)
from demo.draw.photo import develop, vote
from demo.draw.plants import bare_tree, bush, conifer, leafy_tree
from demo.draw.things import cast, lamp_post, mast, person, sign, traffic_light
from demo.draw.weather import weather

Generator = np.random.Generator


def scene_generator(seed: int, split: int, number: int) -> Generator:
    """The generator of one scene; it does not depend on how many scenes are drawn."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, number)))


def numbered_scene(seed: int, split: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """`draw_scene` by numbers alone, for a process of its own."""
    return draw_scene(scene_generator(seed, split, number))


def draw_scene(
    generator: Generator, height: int = 240, width: int = 320
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene, a street or a landscape.

    Args:
        generator: decides everything; the same state gives the same bytes.
        height, width: size of the image, px.

    Returns:
        The image, uint8 ``(height, width, 3)`` sRGB, and its labels, uint8 ``(height, width)``,
        indices of `CLASSES`.
    """
    light = weather(generator)
    compose = _street if generator.random() < 0.5 else _landscape
    canvas = compose(generator, light, height, width)
    return develop(canvas, generator), vote(canvas.labels)


@dataclass
class _Things:
    """What will stand on the ground, with its shadows, until it is painted from far to near."""

    canvas: Canvas
    generator: Generator
    painters: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    contacts: list[Outline] = field(default_factory=list)
    casts: list[Outline] = field(default_factory=list)

    def add(self, z: float, painter: Callable, *values: float | bool) -> None:
        """A thing at z: ``painter(canvas, generator, *values)``."""
        child = self.generator.spawn(1)[0]
        self.painters.append((z, partial(painter, self.canvas, child, *values)))

    def upright(self, painter: Callable, x: float, z: float, half: float, tall: float) -> None:
        """A slim thing with its shadow; ``half`` its half width, m."""
        self.add(z, painter, x, z)
        self.contacts.append(disc(x, z, 1.5 * half, 1.5 * half))
        self.casts.append(cast(self.canvas, x, z, tall, half))

    def plant(self, x: float, z: float, tall: float, needles: float) -> None:
        """A tree of the season, a conifer with the chance ``needles``."""
        bare = self.generator.random() < self.canvas.light.bare
        painter = bare_tree if bare else leafy_tree
        if self.generator.random() < needles:
            painter = conifer
        self.add(z, painter, x, z, tall)
        self.contacts.append(disc(x, z, 0.05 * tall, 0.05 * tall))
        sun = self.canvas.light.sun
        reach = min(0.65 * tall / max(float(sun[1]), 0.2), 30.0)
        self.casts.append(cast(self.canvas, x, z, 0.6 * tall, 0.025 * tall))
        crown = disc(x - reach * float(sun[0]), z - reach * float(sun[2]), 0.3 * tall, 0.33 * tall)
        if not bare:
            self.casts.append(crown)

    def shrub(self, x: float, z: float, tall: float) -> None:
        """A bush with the dark below it."""
        self.add(z, bush, x, z, tall)
        self.contacts.append(disc(x, z, 0.8 * tall, 0.4 * tall))

    def park(self, x: float, z: float, away: bool) -> None:
        """A car whose near end is at z, with its shadow."""
        self.add(z + 0.5, car, x, z, away)
        box = [(x - 0.9, z), (x + 0.9, z), (x + 0.9, z + 4.3), (x - 0.9, z + 4.3)]
        self.contacts += [box, [(a * 1.0, b) for a, b in box]]
        sun = self.canvas.light.sun
        reach = 1.3 / max(float(sun[1]), 0.2)
        self.casts += [box, [(a - reach * sun[0], b - reach * sun[2]) for a, b in box]]

    def paint(self) -> None:
        """Paint the shadows, then the things, the farthest first; not what fog swallows."""
        shadows(self.canvas, self.contacts, self.casts)
        for z, painter in sorted(self.painters, key=lambda item: -item[0]):
            if z < self.canvas.light.reach:
                painter()


def _camera(generator: Generator, height: int, width: int, high: float, level: float) -> Camera:
    """A camera ``high`` m above the ground with its horizon at the share ``level`` of the rows."""
    focal = width * SCALE * generator.uniform(0.72, 1.0)
    centre = width * SCALE * generator.uniform(0.3, 0.7)
    return Camera(focal, centre, height * SCALE * level, high)


def _shift(generator: Generator) -> tuple[float, float]:
    return float(generator.uniform(0, 60)), float(generator.uniform(0, 60))


def _either(generator: Generator) -> int:
    return 1 if generator.random() < 0.5 else -1


def _street(generator: Generator, light: Light, height: int, width: int) -> Canvas:
    uniform = generator.uniform
    camera = _camera(generator, height, width, uniform(1.4, 2.7), uniform(0.4, 0.56))
    canvas = Canvas(height, width, camera, light)
    sky(canvas, _shift(generator))
    if generator.random() < 0.35:
        mountains(
            canvas, _shift(generator), uniform(0.1, 0.25), uniform(200, 350), rgb(110, 104, 98)
        )
    woods(canvas, _shift(generator), uniform(0.04, 0.1), 180, 2)
    ground = Ground(canvas, _shift(generator))
    half, walk = uniform(3.2, 4.8), uniform(2.4, 5.0)
    road = Strip(uniform(-1.1, 1.1) * half, half, float(generator.normal(0, 0.0012)))
    verge = uniform(1.2, 2.5) if generator.random() < 0.35 else 0.0
    off = np.abs(ground.x - road.middle(ground.z))
    meadow(ground.part((off > half + verge + walk) | ((off > half) & (off < half + verge))), 0.0)
    for side in (-1, 1):
        stone = rgb(*([int(generator.integers(118, 168))] * 3)) * tint(1.0, 0.97, 0.92)
        pavement(ground, road, side * (half + verge), side * (half + verge + walk), stone)
    asphalt(ground, road, uniform(70, 112), uniform(4, 7))
    if generator.random() < 0.4:
        crossing(ground, road, uniform(9, 18))
    things = _Things(canvas, generator)
    rows = _town if generator.random() < 0.6 else _suburb
    for side in (-1, 1):
        rows(things, ground, road, side, half + verge, walk)
        _furnish(things, road, side, half + verge, walk)
    _traffic(things, road)
    things.paint()
    return canvas


def _town(
    things: _Things, ground: Ground, road: Strip, side: int, kerb: float, walk: float
) -> None:
    """A closed row of tall buildings, with a gap now and then."""
    generator, light = things.generator, things.canvas.light
    z, typical = generator.uniform(-6, 2), generator.uniform(8, 19)
    hidden, former = 0.0, 0.0  # how tall the house before is, and where its wall stands
    while z < 190:
        long = generator.uniform(8, 17)
        x = float(road.middle(z + long / 2)) + side * (kerb + walk)
        tall = typical * generator.uniform(0.7, 1.3)
        hidden = hidden if side * (x - former) >= 0 else 0.0  # a row that bends in shows gables
        shop = generator.random() < 0.6
        things.add(z + long, row_house, side, x, z, z + long, tall, shop, hidden)
        reach = tall / max(float(light.sun[1]), 0.2)
        dx, dz = -reach * float(light.sun[0]), -reach * float(light.sun[2])
        things.casts.append([(x, z), (x, z + long), (x + dx, z + long + dz), (x + dx, z + dz)])
        gap = generator.uniform(6, 11) if generator.random() < 0.15 else 0.0
        hidden, former = 0.0 if gap else tall, x
        z += long + gap


def _suburb(
    things: _Things, ground: Ground, road: Strip, side: int, kerb: float, walk: float
) -> None:
    """Houses in gardens with trees and bushes."""
    generator = things.generator
    z = generator.uniform(6, 14)
    while z < 130:
        wide, deep, tall = (generator.uniform(*ends) for ends in ((8, 12), (8, 11), (3, 6)))
        lawn = generator.uniform(3, 7)
        x = float(road.middle(z)) + side * (kerb + walk + lawn + wide / 2)
        things.add(z + 0.5, house, x, z, wide, deep, tall)
        things.casts.append(cast(things.canvas, x, z + deep / 2, tall, wide / 2))
        edge = float(road.middle(z)) + side * (kerb + walk)
        if generator.random() < 0.7:
            things.plant(
                edge + side * generator.uniform(1.5, lawn), z - 3, generator.uniform(5, 10), 0.25
            )
        for _ in range(generator.integers(0, 4)):
            things.shrub(edge + side * generator.uniform(1, 4), z + generator.uniform(-4, 4), 1.3)
        things.plant(x + generator.uniform(-6, 6), z + deep + 4, generator.uniform(8, 14), 0.3)
        z += deep + generator.uniform(5, 12)


def _furnish(things: _Things, road: Strip, side: int, kerb: float, walk: float) -> None:
    """Trees, lamps, signs and people on a pavement."""
    generator = things.generator
    step, trees = generator.uniform(16, 28), generator.random() < 0.45
    for number in range(6):
        z = 5 + number * step + generator.uniform(0, 8)
        x = float(road.middle(z)) + side * (kerb + 0.5)
        things.upright(lamp_post, x, z, 0.12, 6.5)
        if trees:
            z += step / 2
            x = float(road.middle(z)) + side * (kerb + 0.7)
            things.plant(x, z, generator.uniform(5, 9), 0.0)
    for _ in range(generator.integers(1, 4)):
        z = generator.uniform(7, 26)
        painter = traffic_light if generator.random() < 0.25 else sign
        things.upright(painter, float(road.middle(z)) + side * (kerb + 0.45), z, 0.15, 2.6)
    for _ in range(generator.integers(1, 6)):
        z = generator.uniform(5, 34)
        x = float(road.middle(z)) + side * (kerb + generator.uniform(0.6, walk - 0.3))
        things.upright(person, x, z, 0.25, 1.7)


def _traffic(things: _Things, road: Strip) -> None:
    """Parked cars along both kerbs and some that drive; the near lane's show their rear."""
    generator = things.generator
    for side in (-1, 1):
        z, dense = generator.uniform(5, 12), generator.uniform(0.15, 0.75)
        while z < 70:
            if generator.random() < dense:
                x = float(road.middle(z)) + side * (road.half - 1.05)
                things.park(x, z, side > 0)
            z += generator.uniform(5.2, 7)
        if generator.random() < 0.6:
            z = generator.uniform(14, 50)
            things.park(float(road.middle(z)) + side * 0.3 * road.half, z, side > 0)


def _landscape(generator: Generator, light: Light, height: int, width: int) -> Canvas:
    uniform = generator.uniform
    camera = _camera(generator, height, width, uniform(1.6, 5.5), uniform(0.3, 0.52))
    canvas = Canvas(height, width, camera, light)
    sky(canvas, _shift(generator))
    haze = 0.0012 / max(light.haze, 0.0012)  # in fog the ranges stand nearer, or nobody sees them
    if generator.random() < 0.75:
        rock = mix(rgb(104, 98, 94), rgb(98, 82, 66), generator.random())
        for far, low in ((340, 0.15), (190, 0.06)):
            top = uniform(low, 2.5 * low)
            mountains(canvas, _shift(generator), top, far * max(haze, 0.35), rock)
    for far in (250, 160):
        if generator.random() < 0.7:
            tall = uniform(0.03, 0.13)
            woods(canvas, _shift(generator), tall, far * max(haze, 0.4), uniform(1, 3))
        if generator.random() < 0.5:
            hills(canvas, _shift(generator), uniform(0.03, 0.12), 0.8 * far * max(haze, 0.4))
    ground = Ground(canvas, _shift(generator))
    meadow(ground, uniform(0, 1) if generator.random() < 0.5 and not light.snow else 0.0)
    water = generator.random() < 0.7
    side = _either(generator)
    road = Strip(side * uniform(1, 5), uniform(0.9, 1.5), side * uniform(0, 0.003), uniform(-3, 3))
    paved = generator.random() < 0.4
    if paved:
        road = replace(road, half=uniform(2.6, 3.4), swing=road.swing / 3)
        asphalt(ground, road, uniform(80, 116), 6.0)
    elif generator.random() < 0.8:
        dirt(ground, road, mix(rgb(150, 128, 98), rgb(122, 104, 86), generator.random()))
    things = _Things(canvas, generator)
    if water:
        middle, axes = (
            (-side * uniform(14, 34), uniform(24, 52)),
            (uniform(30, 70), uniform(17, 34)),
        )
        shore = middle[1] + axes[1]  # its far end: what stands behind it is mirrored
        things.painters.append((shore, partial(lake, ground, middle, axes, road)))
        _far_shore(things, -side, shore)
    _country(things, road, side, water)
    _way(things, road, side if water else 0, paved)
    things.paint()
    return canvas


def _far_shore(things: _Things, side: int, shore: float) -> None:
    """Trees and perhaps a house behind a lake whose far end is at z = ``shore``."""
    generator, needles = things.generator, things.generator.random() ** 2
    for _ in range(generator.integers(3, 12)):
        z = shore + generator.uniform(2, 25)
        things.plant(side * generator.uniform(-0.1, 0.8) * z, z, generator.uniform(6, 14), needles)
    if generator.random() < 0.3:
        z = shore + generator.uniform(2, 10)
        things.add(z, house, side * generator.uniform(0.1, 0.6) * z, z, 10, 8, 4)


def _country(things: _Things, road: Strip, side: int, water: bool) -> None:
    """Trees, bushes and houses beside the way; away from the lake, which lies at ``-side``."""
    generator = things.generator
    needles = generator.random() ** 2
    for _ in range(generator.integers(6, 22)):
        z = generator.uniform(12, 110)
        where = side if water and z > 15 else _either(generator)
        x = float(road.middle(z)) + where * (road.half + generator.uniform(2.5, 8 + 0.6 * z))
        things.plant(x, z, generator.uniform(6, 14), needles)
    for _ in range(generator.integers(0, 9)):
        z = generator.uniform(7, 40)
        x = float(road.middle(z)) + side * (road.half + generator.uniform(1.5, 3 + 0.4 * z))
        things.shrub(x, z, generator.uniform(0.7, 1.8))
    for _ in range(generator.integers(0, 3)):
        z = generator.uniform(22, 70)
        x = float(road.middle(z)) + side * (road.half + generator.uniform(8, 16))
        things.add(
            z,
            house,
            x,
            z,
            generator.uniform(8, 14),
            generator.uniform(7, 10),
            generator.uniform(3, 6),
        )
        things.casts.append(cast(things.canvas, x, z + 3, 5, 5))


def _way(things: _Things, road: Strip, dry: int, paved: bool) -> None:
    """Masts, signs, walkers and cars along the way; ``dry``: the one side without water, or 0."""
    generator = things.generator
    if generator.random() < 0.6:
        where = dry or _either(generator)
        for number in range(5):
            z = generator.uniform(8, 12) + 26 * number
            x = float(road.middle(z)) + where * (road.half + 1.6)
            things.upright(mast, x, z, 0.14, 7)
    for _ in range(generator.integers(0, 2)):
        z = generator.uniform(8, 24)
        x = float(road.middle(z)) + (dry or _either(generator)) * (road.half + 0.8)
        things.upright(sign, x, z, 0.15, 2.6)
    for _ in range(generator.integers(0, 4)):
        z = generator.uniform(6, 28)
        x = float(road.middle(z)) + generator.uniform(-1, 1) * road.half * 0.8
        things.upright(person, x, z, 0.25, 1.7)
    if paved:
        for where in (-1, 1):
            if generator.random() < 0.6:
                z = generator.uniform(9, 40)
                things.park(float(road.middle(z)) + where * 0.5 * road.half, z, where > 0)
