"""Buildings of drawn scenes: facades with windows and shops, street rows, houses with roofs."""

from __future__ import annotations

import numpy as np

from demo.draw.canvas import BUILDING, Canvas, Material, box, mix, noise, rest, rgb, smooth

WALLS = (
    rgb(206, 190, 160),
    rgb(188, 172, 150),
    rgb(226, 218, 204),
    rgb(190, 150, 118),
    rgb(168, 166, 164),
    rgb(206, 178, 120),
    rgb(150, 158, 164),
    rgb(196, 160, 148),
)
BRICKS = (rgb(140, 72, 54), rgb(122, 66, 52), rgb(158, 100, 72), rgb(110, 84, 74))
TILES = (rgb(132, 64, 46), rgb(92, 56, 48), rgb(78, 80, 86), rgb(150, 86, 60))
ALONG, ACROSS, UP = (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


class Facade:
    """The look of one building's walls: a `Material` whose u runs along the wall and v upwards."""

    def __init__(
        self, canvas: Canvas, generator: np.random.Generator, tall: float, shop: bool
    ) -> None:
        self.canvas, self.tall, self.shop = canvas, tall, shop
        self.brick = generator.random() < 0.4
        colours = BRICKS if self.brick else WALLS
        self.wall = colours[generator.integers(len(colours))] * generator.uniform(0.75, 1.1)
        self.trim = mix(self.wall, rgb(232, 228, 220), generator.uniform(0.3, 0.9))
        self.glass = generator.random() < 0.14 and tall > 12
        self.step = generator.uniform(1.7, 3.4) if not self.glass else 1.5
        self.storey = generator.uniform(2.9, 3.6)
        self.base = self.storey * 1.25 if shop else 0.35
        self.wide, self.high = generator.uniform(0.36, 0.6), generator.uniform(0.46, 0.62)
        if self.glass:
            self.wide, self.high = 0.92, 0.84
        self.shift = generator.uniform(0, 60)
        self.dice = generator.random((32, 32)).astype(np.float32)
        self.awning = rgb(*generator.integers(40, 200, 3))
        self.balcony = generator.random() < 0.3 and not self.glass

    def __call__(
        self, u: np.ndarray, v: np.ndarray, size: np.ndarray, on: np.ndarray
    ) -> np.ndarray:
        """Colours ``(3, 1, n)`` under the light ``on``; see `Material`."""
        colour = self._wall(u, v, size)
        row = (v - self.base) / self.storey
        cell_u, cell_v = np.floor(u / self.step), np.floor(row)
        a, b = u / self.step - cell_u - 0.5, row - cell_v - 0.52
        last = np.floor((self.tall - 0.5 - self.base) / self.storey)
        storeys = (cell_v >= 0) & (cell_v < last)
        frame = (np.abs(a) < self.wide / 2 + 0.05) & (np.abs(b) < self.high / 2 + 0.05) & storeys
        pane = (np.abs(a) < self.wide / 2) & (np.abs(b) < self.high / 2) & storeys
        bars = (np.abs(a) < 0.018) | (np.abs(b - 0.08) < 0.016)
        sill = (
            (np.abs(a) < self.wide / 2 + 0.09)
            & (np.abs(b + self.high / 2 + 0.06) < 0.025)
            & storeys
        )
        colour = np.where((frame | sill), self.trim, colour)
        below = (np.abs(a) < self.wide / 2 + 0.06) & (b < -self.high / 2 - 0.08) & storeys
        colour = np.where(below, colour * 0.78, colour)  # sills keep rain and light off
        colour = colour * on
        shown = pane & ~(bars & (not self.glass))
        colour = np.where(shown, self._pane(a, b, cell_u, cell_v, on), colour)
        if self.balcony:
            rail = (np.abs(a) < 0.46) & (b < -0.2) & (b > -0.48) & storeys & (rest(cell_u, 2) == 0)
            rods = (rest(u, 0.16) < 0.05) | (b > -0.24) | (b < -0.45)
            colour = np.where((rail & rods), rgb(50, 52, 54) * on, colour)
        if self.shop:
            colour = self._ground_floor(colour, u, v, on)
        dirt = smooth(0.0, 2.2, v) * 0.35 + 0.65
        return colour * dirt

    def _wall(self, u: np.ndarray, v: np.ndarray, size: np.ndarray) -> np.ndarray:
        stains = 0.22 * noise(u / 3 + self.shift, v / 7, size / 3, 4)
        streaks = 0.16 * noise(u / 0.5 + self.shift, v / 9, size / 0.5, 2)
        grain = 0.22 * noise(u / 0.12, v / 0.12, size / 0.12, 2)
        shade = 1 + stains + streaks + grain
        if self.brick:
            course = np.floor(v / 0.16)
            brick = u / 0.42 + 0.5 * rest(course, 2)
            tint = 0.35 * noise(np.floor(brick) * 1.31, course * 1.73, size / 0.4, 1)
            joint = (rest(v / 0.16) < 0.16) | (rest(brick) < 0.07)
            shade = shade + tint + np.float32(0.45) * joint * smooth(0.08, 0.02, size)
        band = (rest(v - self.base, self.storey) < 0.14) & (v > self.base - 0.1)
        cornice = v > self.tall - 0.45
        colour = np.where((band | cornice), self.trim, self.wall)
        under = (v < self.tall - 0.45) & (v > self.tall - 0.75)
        return colour * np.where(under, 0.55 * shade, shade)

    def _pane(
        self, a: np.ndarray, b: np.ndarray, cell_u: np.ndarray, cell_v: np.ndarray, on: np.ndarray
    ) -> np.ndarray:
        light = self.canvas.light
        die = self.dice[cell_v.astype(int) % 32, cell_u.astype(int) % 32]
        other = self.dice[cell_u.astype(int) % 32, (cell_v.astype(int) + 7) % 32]
        # A pane mirrors some of the sky, more in its upper part, and each hangs a little askew.
        sky = smooth(-0.4, 0.5, b + 0.5 * die - 0.25 + a * (other - 0.5))
        colour = mix(rgb(16, 20, 24), light.horizon * 0.7, (0.12 + 0.5 * die) * sky)
        curtain = (np.abs(a) > 0.5 * self.wide * other) & (die > 0.45) & (not self.glass)
        colour = np.where(curtain, mix(colour, rgb(200, 196, 186) * on * 0.6, 0.7), colour)
        deep = smooth(self.high / 2, self.high / 2 - 0.12, b)
        lit = other < light.lamps
        return np.where(lit, rgb(255, 206, 130) * (0.7 + die), colour * (0.35 + 0.65 * deep))

    def _ground_floor(
        self, colour: np.ndarray, u: np.ndarray, v: np.ndarray, on: np.ndarray
    ) -> np.ndarray:
        bay = 3.6
        cell, a = np.floor(u / bay), rest(u, bay)
        die = self.dice[cell.astype(int) % 32, 3]
        top = self.base - 0.85
        window = (a > 0.3) & (a < bay - 0.3) & (v > 0.55) & (v < top)
        door = (a > 1.3) & (a < 2.4) & (v < top) & (die < 0.3)
        goods = smooth(0.1, 0.9, noise(u * 2.2, v * 2.2 + 9 * die, octaves=4)) * (v < 1.7)
        sky = 0.3 * smooth(0.6, top, v + 0.6 * noise(u * 0.7, v * 0.4 + 5 * die, octaves=2))
        shown = mix(rgb(30, 32, 34), self.canvas.light.horizon * 0.6, sky)
        shown = mix(shown, mix(self.awning, rgb(210, 190, 150), die) * on * 0.5, 0.7 * goods)
        shown = shown + rgb(250, 220, 160) * (0.7 * self.canvas.light.lamps)
        colour = np.where(window, shown, colour)
        colour = np.where(door, rgb(54, 40, 32) * on, colour)
        board = (a > 0.2) & (a < bay - 0.2) & (v > top + 0.1) & (v < self.base - 0.2)
        name = (
            board
            & (np.abs(v - top - 0.38) < 0.14)
            & (np.sin(u * 17 + 30 * die) > -0.3)
            & (np.abs(a - 1.8) < 1.1)
        )
        tone = mix(self.awning, rgb(60, 60, 66), die)
        colour = np.where(board, tone * on, colour)
        return np.where(name, rgb(238, 232, 214) * on, colour)


def row_house(
    canvas: Canvas,
    generator: np.random.Generator,
    side: int,
    x: float,
    near: float,
    far: float,
    tall: float,
    shop: bool,
    hidden: float,
) -> None:
    """A building of a street row: its wall stands along z at x, from ``near`` to ``far``.

    Args:
        side: of the road, -1 or 1.
        hidden: height up to which a nearer house hides its gable, m.
    """
    face = Facade(canvas, generator, tall, shop)
    long, deep = far - near, 12.0
    rise = generator.uniform(1.5, 3) if generator.random() < 0.45 else 0.0
    end = face if generator.random() < 0.6 else _blind(face)
    if near > 1 and hidden < tall + rise:
        ridge, low = 3.0 if side > 0 else deep - 3.0, min(hidden, tall)
        gable = [(0, low), (deep, low), (deep, tall), (ridge, tall + rise), (0, tall)]
        left = x if side > 0 else x - deep
        canvas.plane((left, 0, near), ACROSS, UP, gable, end, BUILDING)
    canvas.plane((x, 0, near), ALONG, UP, box(long, tall), face, BUILDING)
    if rise:
        slope = float(np.hypot(rise, 3.0))
        up = (side * 3.0 / slope, rise / slope, 0.0)
        roof = _tiles(canvas, generator)
        canvas.plane((x, tall, near), ALONG, up, box(long, slope), roof, BUILDING)
        for at in generator.uniform(1, max(long - 1, 1.5), 2):
            back = (x + side * 2.2, tall + rise * 0.6, near + at)
            canvas.plane(back, ALONG, UP, box(0.7, 1.5), _brick(generator), BUILDING)


def _blind(face: Facade) -> Material:
    """The wall of a building that has no windows."""

    def material(u: np.ndarray, v: np.ndarray, size: np.ndarray, on: np.ndarray) -> np.ndarray:
        return face._wall(u, v, size) * on * 0.9

    return material


def _brick(generator: np.random.Generator) -> Material:
    colour = BRICKS[generator.integers(len(BRICKS))]

    def material(u: np.ndarray, v: np.ndarray, size: np.ndarray, on: np.ndarray) -> np.ndarray:
        return colour * on * (1 + 0.4 * noise(u * 3, v * 8, size * 8, 2))

    return material


def _tiles(canvas: Canvas, generator: np.random.Generator) -> Material:
    """A tiled roof: courses and single tiles, moss, snow."""
    colour = TILES[generator.integers(len(TILES))] * generator.uniform(0.8, 1.2)
    snow = canvas.light.snow

    def material(u: np.ndarray, v: np.ndarray, size: np.ndarray, on: np.ndarray) -> np.ndarray:
        course = np.floor(v / 0.3)
        fine = smooth(0.2, 0.05, size)
        tint = 0.3 * noise(
            np.floor(u / 0.25 + 0.5 * rest(course, 2)) * 1.3, course * 1.7, octaves=1
        )
        lower = 0.35 * (rest(v / 0.3) < 0.25)
        shade = 1 + (tint - lower) * fine + 0.3 * noise(u / 2, v / 2, size / 2, 4)
        tiled = mix(colour * shade, rgb(236, 240, 248), 0.9 * snow)
        return tiled * on

    return material


def house(
    canvas: Canvas,
    generator: np.random.Generator,
    x: float,
    z: float,
    wide: float,
    deep: float,
    tall: float,
) -> None:
    """A house with a pitched roof; (x, z) is the middle of its front, which faces the camera."""
    face = Facade(canvas, generator, tall + 0.5, False)
    face.glass = False
    left, right, rise = x - wide / 2, x + wide / 2, wide * generator.uniform(0.28, 0.4)
    tiles = _tiles(canvas, generator)
    front_gable = generator.random() < 0.45
    flank = right if x < 0 else left
    side = [(0, 0), (deep, 0), (deep, tall), (0, tall)]
    if front_gable:
        canvas.plane((flank, 0, z), ALONG, UP, side, face, BUILDING)
        slope = float(np.hypot(wide / 2, rise))
        eaves = [(-0.4, -0.4), (deep, -0.4), (deep, slope), (-0.4, slope)]
        for edge, inwards in ((left, 1.0), (right, -1.0)):
            up = (inwards * wide / 2 / slope, rise / slope, 0.0)
            canvas.plane((edge, tall, z), ALONG, up, eaves, tiles, BUILDING)
        front = [(0, 0), (wide, 0), (wide, tall), (wide / 2, tall + rise), (0, tall)]
        canvas.plane((left, 0, z), ACROSS, UP, front, face, BUILDING)
    else:
        rise = deep * 0.35
        gable = [(0, 0), (deep, 0), (deep, tall), (deep / 2, tall + rise), (0, tall)]
        canvas.plane((flank, 0, z), ALONG, UP, gable, face, BUILDING)
        front = [(0, 0), (wide, 0), (wide, tall), (0, tall)]
        canvas.plane((left, 0, z), ACROSS, UP, front, face, BUILDING)
        slope = float(np.hypot(deep / 2, rise))
        up = (0.0, rise / slope, deep / 2 / slope)
        eaves = [(-0.4, -0.35), (wide + 0.4, -0.35), (wide + 0.4, slope), (-0.4, slope)]
        canvas.plane((left, tall, z), ACROSS, up, eaves, tiles, BUILDING)
    at = generator.uniform(0.25, 0.7) * wide
    door = [(at, 0), (at + 1.0, 0), (at + 1.0, 2.1), (at, 2.1)]
    canvas.plane((left, 0, z - 0.02), ACROSS, UP, door, _door(generator), BUILDING)
    if generator.random() < 0.7:
        stack = [(0, 0), (0.8, 0), (0.8, 1.3), (0, 1.3)]
        top = tall + rise * 0.75
        canvas.plane(
            (x + wide * 0.2, top, z + deep * 0.4), ACROSS, UP, stack, _brick(generator), BUILDING
        )


def _door(generator: np.random.Generator) -> Material:
    colour = rgb(*generator.integers(30, 130, 3))

    def material(u: np.ndarray, v: np.ndarray, size: np.ndarray, on: np.ndarray) -> np.ndarray:
        panel = (np.abs(rest(u, 0.5) - 0.25) > 0.19) | (np.abs(rest(v, 0.7) - 0.35) > 0.28)
        return colour * on * (0.75 + 0.35 * panel)

    return material
