"""Cars of drawn scenes: a rounded body, a cabin that narrows upwards, wheels in their arches.

A car is built with z from its rear, 0, to its front, and turned round where it comes nearer.
"""

from __future__ import annotations

import numpy as np

from demo.draw.canvas import CAR, Canvas, mix, rgb
from demo.draw.solids import Faces, joined, loft, paint_faces, wheel

PAINTS = (
    rgb(196, 198, 202),
    rgb(235, 236, 238),
    rgb(36, 38, 42),
    rgb(110, 114, 120),
    rgb(150, 24, 28),
    rgb(30, 62, 120),
    rgb(60, 96, 78),
    rgb(176, 150, 96),
    rgb(206, 122, 30),
)
BLACK, DARK, GLASS, PLATE = rgb(12, 12, 13), rgb(30, 30, 32), rgb(22, 27, 31), rgb(228, 226, 205)
SNOW = rgb(236, 240, 246)
UNDER, BODY, WHEELS, CABIN = range(4)  # layers
# Along the car, as shares: place, waist, half width, and the bottom in metres.
_BODY = np.array(
    [
        [0.0, 0.62, 0.86, 0.40],
        [0.012, 0.80, 0.93, 0.30],
        [0.05, 0.93, 0.98, 0.24],
        [0.12, 0.98, 1.0, 0.2],
        [0.3, 1.0, 1.0, 0.2],
        [0.5, 1.0, 1.0, 0.2],
        [0.68, 0.99, 1.0, 0.2],
        [0.8, 0.92, 0.99, 0.2],
        [0.9, 0.85, 0.96, 0.2],
        [0.96, 0.77, 0.91, 0.24],
        [0.99, 0.66, 0.83, 0.3],
        [1.0, 0.55, 0.75, 0.38],
    ]
)
# Along the cabin, as shares: place, and height above the waist.
_PLACES = (
    (0.15, 0.2, 0.26, 0.31, 0.4, 0.49, 0.5, 0.56, 0.6, 0.67, 0.74),  # a saloon's
    (0.02, 0.045, 0.08, 0.12, 0.25, 0.43, 0.44, 0.55, 0.6, 0.68, 0.77),  # a hatchback's
)
_HEIGHTS = (0.0, 0.45, 0.85, 0.96, 1.0, 1.0, 1.0, 0.97, 0.88, 0.45, 0.0)
# Across the cabin, from the waist to the middle of the roof: half width and height, as shares.
_HOOP = np.array([[1.0, 0.0], [0.985, 0.1], [0.94, 0.5], [0.88, 0.84], [0.78, 0.96], [0.4, 1.0]])


def car(canvas: Canvas, generator: np.random.Generator, x: float, z: float, away: bool) -> None:
    """Paint a car whose near end is at (x, z), along the road. ``away``: it shows its rear."""
    tall, long = generator.uniform(0.95, 1.2), generator.uniform(3.9, 4.6)
    half, waist, radius = 0.89 * (0.5 + 0.5 * tall), 0.92 * tall, 0.31 * tall
    colour = PAINTS[generator.integers(len(PAINTS))]
    places = _PLACES[generator.integers(2)]
    side = half if x < 0 else -half  # the flank that is seen
    lamps = canvas.light.lamps
    faces = joined(
        [
            *_under(half, long, radius, away),
            *_body(half, long, waist, colour, canvas.light.snow),
            *_wheels(side, long, radius),
            *_end(half, long, waist, away, lamps),
            *_cabin(places, half, long, waist, 0.56 * tall, colour, canvas.light.snow),
        ]
    )
    corners = faces.corners
    if not away:  # a mirror image, which would turn faces inside out
        corners = corners[:, ::-1] * (1, 1, -1) + (0, 0, long)
    paint_faces(canvas, faces._replace(corners=np.add(corners, (x, 0, z))), CAR)


def _under(half: float, long: float, radius: float, away: bool) -> list[Faces]:
    """The tyres as seen from the near end, the wheels of both sides, the dark between them."""
    at = 0.13 * long if away else 0.88 * long
    posts = [
        [[a, 0, at], [b, 0, at], [b, 0.4, at], [a, 0.4, at]]
        for a, b in ((-half + 0.06, -half + 0.26), (half - 0.26, half - 0.06))
    ]
    dark = [[[-half + 0.1, 0.16, at], [half - 0.1, 0.16, at], [half, 0.5, at], [-half, 0.5, at]]]
    tyres = [
        wheel(np.array([a, radius, b]), radius)
        for a in (-0.8 * half, 0.8 * half)
        for b in (0.18 * long, 0.83 * long)
    ]
    return [Faces.of(np.concatenate([np.array(posts + dark), *tyres]), BLACK, 0.0, UNDER)]


def _body(half: float, long: float, waist: float, colour: np.ndarray, snow: float) -> list[Faces]:
    """The body below the waist: rounded boxes along z, closed at both ends."""
    place, top, wide, bottom = _BODY.T[:, :, None] * np.array([long, waist, half, 1])[:, None, None]
    turn = (np.arange(20) + 0.5) * 2 * np.pi / 20
    flat, steep = (
        np.sign(f(turn)) * np.abs(f(turn)) ** p for f, p in ((np.cos, 0.3), (np.sin, 0.5))
    )
    x = wide * flat * (1 - 0.06 * np.clip(steep, 0, 1))
    y = (top + bottom) / 2 + (top - bottom) / 2 * steep
    rings = np.stack([x, y, np.broadcast_to(place, x.shape)], axis=2)
    shell = loft(rings, True).reshape(-1, 4, 3)
    ends = [
        np.stack([ring[:9], ring[1:10], ring[:9:-1][1:], ring[:9:-1][:-1]], axis=1)
        for ring in (rings[0], rings[-1])
    ]
    corners = np.concatenate([shell, *ends])
    height = corners[..., 1].mean(axis=1) / waist
    paint = np.where((height < 0.36)[:, None], DARK.reshape(1, 3), colour.reshape(1, 3))
    seam = (np.abs(height - 0.6) < 0.04)[:, None]
    paint = np.where(seam, paint * 0.8, paint)
    white = np.clip((height - 0.9) * 12, 0, 1)[:, None] * 0.7 * snow
    paint = paint + (SNOW.reshape(1, 3) - paint) * white
    faces = Faces.of(corners, paint, np.where(height < 0.36, 0.0, 0.06), BODY, True)
    return [faces._replace(solid=np.arange(len(corners)) < len(shell))]  # ends turn by themselves


def _wheels(side: float, long: float, radius: float) -> list[Faces]:
    """Arches, tyres, rims and hubs on the flank that is seen."""
    parts = []
    for at in (0.18 * long, 0.83 * long):
        for share, out, tone in (
            (1.24, 1.0, 9),
            (1.0, 1.005, 22),
            (0.64, 1.01, 150),
            (0.2, 1.015, 50),
        ):
            disc = wheel(np.array([out * side, radius, at]), share * radius)
            if share > 1:
                disc[..., 1] = np.maximum(disc[..., 1], 0.2)  # an arch ends at the sill
            parts.append(Faces.of(disc, rgb(tone, tone, tone), 0.03, WHEELS))
    return parts


def _end(half: float, long: float, waist: float, away: bool, lamps: float) -> list[Faces]:
    """Lamps, plate, bumper and, in front, a grille on the end that is seen."""
    at, out = (0.0, -0.01) if away else (long, 0.01)

    def panel(x: float, y: float, wide: float, high: float, inwards: float = 0.0) -> np.ndarray:
        left, right, low, top = x - wide / 2, x + wide / 2, y - high / 2, y + high / 2
        z, back = at + out, at + out - np.sign(out) * inwards
        ends = (back, z) if x < 0 else (z, back)
        return np.array(
            [
                [
                    [left, low, ends[0]],
                    [right, low, ends[1]],
                    [right, top, ends[1]],
                    [left, top, ends[0]],
                ]
            ]
        )

    glow = rgb(190, 22, 18) if away else rgb(240, 240, 232)
    edge, y = (0.84 * half, 0.54 * waist) if away else (0.78 * half, 0.49 * waist)
    pair = [panel(a * (edge - 0.15), y, 0.3, 0.14, 0.05) for a in (-1, 1)]
    parts = [
        Faces.of(panel(0, 0.36 * waist, 1.62 * half, 0.1), DARK, 0.0, WHEELS),
        Faces.of(np.concatenate(pair), glow * (1 + 2 * lamps), 0.1, WHEELS),
        Faces.of(
            panel(0, 0.36 * waist if not away else 0.52 * waist, 0.52, 0.12), PLATE, 0.0, WHEELS
        ),
    ]
    if not away:
        parts.append(Faces.of(panel(0, 0.49 * waist, 0.9 * half, 0.1), BLACK, 0.02, WHEELS))
    return parts


def _cabin(
    places: tuple[float, ...],
    half: float,
    long: float,
    waist: float,
    over: float,
    colour: np.ndarray,
    snow: float,
) -> list[Faces]:
    """Windows, pillars and roof: hoops along z."""
    hoop = np.concatenate([_HOOP, _HOOP[::-1] * (-1, 1)])
    place, high = np.array([places, _HEIGHTS])[:, :, None]
    x = np.broadcast_to(0.93 * half * hoop[:, 0], (len(places), len(hoop)))
    y = 0.97 * waist + (over + 0.03 * waist) * high * hoop[:, 1]
    rings = np.stack([x, y, np.broadcast_to(long * place, x.shape)], axis=2)
    shell = loft(rings, False)
    spans, sides = shell.shape[:2]
    glass = np.zeros((spans, sides), bool)
    for ends in (slice(0, 2), slice(spans - 2, spans)):  # rear window and windscreen
        glass[ends, 4:-4] = True
    glass[2:-2, [1, 2, -3, -2]] = True  # the side windows ...
    glass[5] = False  # ... with a pillar between them
    roof = ~glass & (np.abs(np.arange(sides) - sides // 2) < 3)
    tones = np.stack([colour.ravel(), mix(colour, SNOW, 0.8 * snow).ravel(), GLASS.ravel()])
    paint = tones[np.where(glass, 2, roof)].reshape(-1, 3)
    gloss = np.where(glass, 0.13, 0.06).ravel()
    return [Faces.of(shell.reshape(-1, 4, 3), paint, gloss, CABIN, True)]
