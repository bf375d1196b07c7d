"""People, poles and signs of drawn scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from demo.draw.canvas import (
    PERSON,
    POLE,
    SIGN,
    Canvas,
    Outline,
    bar,
    disc,
    flat,
    limb,
    mix,
    rgb,
    tint,
)

Generator = np.random.Generator
CLOTHES = (
    rgb(40, 44, 60),
    rgb(150, 40, 44),
    rgb(58, 84, 120),
    rgb(200, 190, 170),
    rgb(66, 70, 66),
    rgb(196, 150, 50),
    rgb(100, 60, 90),
    rgb(224, 224, 226),
    rgb(36, 110, 100),
)
SKIN = (rgb(224, 180, 150), rgb(188, 136, 100), rgb(116, 76, 54))


def cast(canvas: Canvas, x: float, z: float, height: float, half: float) -> Outline:
    """The shadow (x, z) on the ground of an upright thing of this height and half width, m."""
    sun = canvas.light.sun
    reach = min(height / max(float(sun[1]), 0.15), 25.0)
    dx, dz = -reach * float(sun[0]), -reach * float(sun[2])
    norm = max(float(np.hypot(dx, dz)), 1e-3)
    ax, az = -dz / norm * half, dx / norm * half
    return [
        (x + ax, z + az),
        (x - ax, z - az),
        (x - ax + dx, z - az + dz),
        (x + ax + dx, z + az + dz),
    ]


def person(canvas: Canvas, generator: Generator, x: float, z: float) -> None:
    """Somebody who stands or walks: legs, shoes, coat, arms, head, hair, at times a bag."""
    tall = generator.uniform(1.5, 1.9)
    coat, trousers = (CLOTHES[generator.integers(len(CLOTHES))] for _ in range(2))
    skin = SKIN[generator.integers(len(SKIN))]
    hair = rgb(*generator.choice([(30, 24, 22), (90, 64, 40), (150, 140, 130), (190, 150, 90)]))
    stride = generator.uniform(0.03, 0.2) * tall
    swing = generator.uniform(-0.12, 0.12) * tall
    hip, neck = 0.5 * tall, 0.82 * tall
    trousers = trousers * 0.7
    body = 0.115 * tall * generator.uniform(0.85, 1.15)

    def part(
        a: tuple[float, float], b: tuple[float, float], r0: float, r1: float, colour: np.ndarray
    ) -> None:
        limb(canvas, x, z, [a, b], (r0 * tall, r1 * tall), colour, PERSON)

    for side in (-1, 1):
        foot, knee = side * stride, side * (0.4 * stride + 0.02 * tall)
        part((side * 0.045 * tall, hip), (knee, 0.27 * tall), 0.055, 0.042, trousers)
        part((knee, 0.27 * tall), (foot, 0.04 * tall), 0.042, 0.03, trousers)
        part((foot - 0.02, 0.025 * tall), (foot + 0.05, 0.02 * tall), 0.022, 0.02, rgb(28, 24, 22))
    hem = hip - generator.uniform(0.0, 0.14) * tall
    for side in (-1, 1):
        shoulder = (side * 0.95 * body, neck - 0.05 * tall)
        hand = (side * (1.25 * body + 0.3 * abs(swing)), hip + 0.02)
        part(shoulder, hand, 0.035, 0.026, coat * 0.85)
        part(hand, (hand[0], hand[1] - 0.04), 0.02, 0.018, skin)
    limb(
        canvas,
        x,
        z,
        [(0, neck - 0.09 * tall), (0, hem + body * 0.8)],
        (body, 0.95 * body),
        coat,
        PERSON,
    )
    if generator.random() < 0.35:
        part(
            (body * 1.35, hip - 0.02), (body * 1.35, hip - 0.16 * tall), 0.06, 0.07, rgb(84, 58, 40)
        )
    part((0, neck - 0.02), (0, neck + 0.04 * tall), 0.03, 0.03, skin)
    part((0, 0.915 * tall), (0, 0.94 * tall), 0.052, 0.056, skin)
    part((-0.01 * tall, 0.965 * tall), (0.012 * tall, 0.965 * tall), 0.05, 0.05, hair)


def lamp_post(canvas: Canvas, generator: Generator, x: float, z: float) -> None:
    """A street lamp: a tapered mast with an arm over the road."""
    tall, side = generator.uniform(5, 8), -1.0 if x > 0 else 1.0
    grey = rgb(*([int(generator.integers(70, 130))] * 3)) * tint(0.9, 1.0, 0.97)
    limb(canvas, x, z, [(0, 0), (0, 1.0)], (0.12, 0.11), grey * 0.8, POLE)
    limb(canvas, x, z, [(0, 1.0), (0, tall)], (0.085, 0.055), grey, POLE)
    limb(canvas, x, z, [(0, tall), (side * 1.3, tall + 0.3)], (0.05, 0.045), grey, POLE)
    lamp = mix(rgb(150, 152, 155), rgb(255, 220, 150) * 4, canvas.light.lamps)
    limb(
        canvas,
        x,
        z,
        [(side * 1.2, tall + 0.27), (side * 1.75, tall + 0.3)],
        (0.1, 0.09),
        lamp,
        POLE,
    )


def mast(canvas: Canvas, generator: Generator, x: float, z: float) -> None:
    """A wooden mast with cross-arms for wires."""
    tall, wood = generator.uniform(6.5, 8.5), rgb(104, 86, 68) * generator.uniform(0.6, 1.1)
    limb(canvas, x, z, [(0, 0), (0, tall)], (0.14, 0.1), wood, POLE)
    for y in (tall - 0.35, tall - 1.1):
        limb(canvas, x, z, [(-0.9, y), (0.9, y)], (0.06, 0.06), wood * 0.85, POLE)
        for at in (-0.8, -0.35, 0.35, 0.8):
            limb(canvas, x, z, [(at, y), (at, y + 0.18)], (0.05, 0.05), rgb(190, 196, 190), POLE)


def _plate(
    canvas: Canvas, x: float, y: float, z: float, rings: Sequence[tuple[Outline, np.ndarray]]
) -> None:
    """Flat shapes, one over the other, in front of (x, y): outlines (dx, dy) in m."""
    for outline, colour in rings:
        canvas.plane((x, y, z), (1, 0, 0), (0, 1, 0), outline, flat(colour), SIGN)


def sign(canvas: Canvas, generator: Generator, x: float, z: float) -> None:
    """A traffic sign on a post: prohibition, warning, mandatory, stop, or a panel with names."""
    white, red, blue = rgb(240, 240, 238), rgb(190, 20, 28), rgb(20, 70, 160)
    black = rgb(22, 22, 24)
    kind, y = generator.integers(6), generator.uniform(2.2, 2.7)
    limb(canvas, x, z + 0.05, [(0, 0), (0, y + 0.3)], (0.04, 0.04), rgb(140, 144, 146), POLE)
    z = z - 0.02
    r = 0.42
    if kind == 0:
        beam = [(-0.2, -0.06), (0.2, -0.06), (0.2, 0.06), (-0.2, 0.06)]
        rings = [(disc(0, 0, r, r), red), (disc(0, 0, 0.3, 0.3), white), (beam, black)]
    elif kind == 1:
        outer = [(-0.5, -0.4), (0.5, -0.4), (0.0, 0.48)]
        inner = [(-0.34, -0.31), (0.34, -0.31), (0.0, 0.29)]
        rings = [(outer, red), (inner, white), (disc(0, -0.08, 0.05, 0.17), black)]
    elif kind == 2:
        arrow = [
            (-0.07, -0.26),
            (0.07, -0.26),
            (0.07, 0.05),
            (0.2, 0.05),
            (0, 0.28),
            (-0.2, 0.05),
            (-0.07, 0.05),
        ]
        rings = [(disc(0, 0, r, r), white), (disc(0, 0, r - 0.04, r - 0.04), blue), (arrow, white)]
    elif kind == 3:
        turn = np.arange(8) * np.pi / 4 + np.pi / 8
        eight = [(0.45 * float(np.cos(t)), 0.45 * float(np.sin(t))) for t in turn]
        letters = [bar(at, 0.0, 0.09, 0.2) for at in (-0.24, -0.08, 0.08, 0.24)]
        rings = [(eight, red), *((letter, white) for letter in letters)]
    else:
        back = (blue, rgb(24, 110, 62), rgb(240, 196, 40))[generator.integers(3)]
        ink = black if back[2] < 0.05 and back[0] > 0.5 else white
        lines = [
            bar(generator.uniform(-0.25, 0.1), dy, generator.uniform(0.7, 1.1), 0.1)
            for dy in (-0.2, 0.0, 0.2)
        ]
        rings = [(bar(0, 0, 1.7, 0.85), white), (bar(0, 0, 1.62, 0.77), back)]
        rings += [(line, ink) for line in lines]
    _plate(canvas, x, y, z, rings)


def traffic_light(canvas: Canvas, generator: Generator, x: float, z: float) -> None:
    """A signal of three lamps on a post; its head counts as a sign."""
    limb(canvas, x, z + 0.1, [(0, 0), (0, 3.4)], (0.07, 0.06), rgb(80, 84, 84), POLE)
    on = generator.integers(3)
    lamps = (rgb(255, 40, 30), rgb(255, 190, 40), rgb(60, 255, 140))
    rings = [(bar(0, 0, 0.44, 1.16), rgb(34, 38, 36))]
    for number, lamp in enumerate(lamps):
        bright = 2.5 if number == on else 0.12
        rings.append((disc(0, 0.36 - 0.36 * number, 0.13, 0.13), lamp * bright))
    _plate(canvas, x, 3.0, z, rings)
