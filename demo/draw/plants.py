"""Trees and bushes of drawn scenes. Label: tree."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from demo.draw.canvas import TREE, Canvas, limb, mix, noise, rgb, smooth

Generator = np.random.Generator
BARK = (rgb(88, 70, 54), rgb(112, 98, 82), rgb(70, 58, 50))


def _clump(
    canvas: Canvas, at: tuple[float, float, float], radius: float, leaf: np.ndarray, seed: float
) -> None:
    """A ball of leaves at (x, y, z) with a ragged rim, lit from the sun, dark below."""
    x, y, z = at
    found = canvas.patch(x, y - 1.3 * radius, z, 2.6 * radius, 2.6 * radius)
    if found is None:
        return
    window, dx, dy = found
    u, v = dx / radius, dy / radius - 1.3
    size = z / canvas.camera.focal
    leaves = noise(dx * 4.5 + seed, dy * 4.5 + 0.7 * seed, 4.5 * size, 4)
    distance = u * u + v * v + 0.9 * leaves
    face = np.sqrt(np.clip(1 - distance, 0, 1))
    sun = canvas.light.sun
    lit = np.clip(
        0.25 + 0.75 * (u * sun[0] + v * sun[1] - 0.7 * face * sun[2]) + 0.4 * leaves, 0, 1.2
    )
    open_sky = np.clip(0.55 + 0.5 * v + 0.4 * leaves, 0.08, 1.2)
    light = canvas.light.ambient * open_sky + canvas.light.direct * lit * 0.8
    colour = leaf * light * (1 + 0.4 * leaves)
    if canvas.light.snow:
        colour = mix(colour, rgb(232, 236, 246) * light, smooth(0.25, 0.6, v + 0.5 * leaves))
    canvas.paint(window, distance < 0.85, colour, TREE, z)


def leafy_tree(canvas: Canvas, generator: Generator, x: float, z: float, height: float) -> None:
    """A broad-leaved tree: trunk, boughs, a crown of many clumps. Label: tree."""
    light = canvas.light
    bark = BARK[generator.integers(len(BARK))]
    leaf = light.foliage[generator.integers(len(light.foliage))] * generator.uniform(0.75, 1.2)
    wide = height * generator.uniform(0.28, 0.4)
    low = height * generator.uniform(0.22, 0.36)
    trunk = 0.022 * height
    limb(canvas, x, z, [(0, 0), (0.02 * height, 0.6 * height)], (trunk, 0.6 * trunk), bark, TREE)
    for side in (-1, 1):
        bough = [(0.01 * height, low), (side * 0.5 * wide, low + 0.25 * height)]
        limb(canvas, x, z, bough, (0.5 * trunk, 0.25 * trunk), bark, TREE)
    seen = canvas.camera.focal * height / z
    count = int(np.clip(seen / 12, 9, 34))
    middle, half = (low + height) / 2, (height - low) / 2
    clumps = []
    for number in range(count):
        turn, away = number * 2.4, math.sqrt((number + 0.5) / count)
        cx = wide * (0.8 * away * math.cos(turn) + generator.normal(0, 0.06))
        cy = middle + half * (0.78 * away * math.sin(turn) + generator.normal(0, 0.06))
        clumps.append(
            (generator.uniform(0.25, 0.42) * wide + 0.5 * wide * (1 - away) * 0.5, cx, cy)
        )
    for radius, cx, cy in sorted(clumps, key=lambda clump: clump[2] - 2 * clump[0], reverse=True):
        tint = leaf * generator.uniform(0.82, 1.18)
        _clump(canvas, (x + cx, cy, z), radius, tint, generator.uniform(0, 60))


def bush(canvas: Canvas, generator: Generator, x: float, z: float, height: float) -> None:
    """A low bush: a few clumps on the ground. Label: tree."""
    light = canvas.light
    leaf = light.foliage[generator.integers(len(light.foliage))] * generator.uniform(0.7, 1.1)
    for _ in range(6):
        radius = height * generator.uniform(0.3, 0.45)
        at = (x + generator.normal(0, 0.4) * height, generator.uniform(0.5, 1.0) * radius + 0.1, z)
        _clump(canvas, at, radius, leaf * generator.uniform(0.85, 1.15), generator.uniform(0, 60))


def conifer(canvas: Canvas, generator: Generator, x: float, z: float, height: float) -> None:
    """A spruce: whorls of hanging boughs, each a ragged skirt. Label: tree."""
    half = height * generator.uniform(0.17, 0.24)
    found = canvas.patch(x, 0, z, 2.6 * half, 1.04 * height)
    if found is None:
        return
    window, dx, dy = found
    limb(canvas, x, z, [(0, 0), (0, 0.4 * height)], (0.018 * height, 0.012 * height), BARK[0], TREE)
    light, seed = canvas.light, generator.uniform(0, 60)
    size = z / canvas.camera.focal
    needles = noise(dx * 3 + seed, dy * 2 + seed, 3 * size, 5)
    top = np.clip(1 - dy / height, 0, 1)
    whorl = (top * (7 + 5 * generator.random()) + 0.45 * needles + 0.35 * np.abs(dx) / half) % 1
    reach = half * (top * 0.95 + 0.02) * (0.55 + 0.45 * whorl) * (1 + 0.55 * needles)
    mask = (np.abs(dx) < reach) & (dy > height * 0.09 + 0.1 * height * needles) & (dy < height)
    side = dx / np.maximum(reach, 1e-3) * light.sun[0]
    lit = np.clip(
        0.3 + 0.5 * side - 0.25 * light.sun[2] + 0.6 * needles + 0.4 * whorl - 0.2, 0.02, 1
    )
    open_sky = np.clip(0.3 + 0.45 * whorl + 0.5 * needles, 0.06, 1)
    shade = light.ambient * open_sky + light.direct * lit * 0.7
    green = rgb(44, 76, 48) * generator.uniform(0.7, 1.3)
    colour = green * shade * (1 + 0.4 * needles)
    if light.snow:
        colour = mix(colour, rgb(232, 236, 246) * shade, smooth(0.5, 0.9, whorl + 0.5 * needles))
    canvas.paint(window, mask, colour, TREE, z)


def bare_tree(canvas: Canvas, generator: Generator, x: float, z: float, height: float) -> None:
    """A tree without leaves: branches that fork until they are twigs. Label: tree."""
    found = canvas.patch(x, 0, z, 1.2 * height, 1.1 * height)
    if found is None:
        return
    window, dx, dy = found
    scale = canvas.camera.focal / z
    mask = Image.new("L", (dx.size, dy.size))
    draw = ImageDraw.Draw(mask)
    x0, y0, turn, long = (
        np.array([v]) for v in (0.0, 0.0, generator.normal(0, 0.04), 0.27 * height)
    )
    for fork in range(7):
        x1, y1 = x0 + long * np.sin(turn), y0 + long * np.cos(turn)
        ends = scale * np.stack(
            [x0 - dx[0, 0], dy[0, 0] - y0, x1 - dx[0, 0], dy[0, 0] - y1], axis=1
        )
        width = max(1, round(scale * 0.022 * height * 0.66**fork))
        for line in ends.tolist():
            draw.line(line, fill=1, width=width)
        kept = long * scale > 2.5  # samples; what is shorter does not fork
        x0, y0, turn, long = (np.tile(values[kept], 3) for values in (x1, y1, turn, long))
        side = np.repeat([-1.0, 1.0, 0.0], kept.sum())
        side = np.where(side == 0, generator.uniform(-0.6, 0.6, side.size), side)
        turn = 0.9 * turn + side * generator.uniform(0.25, 0.6, side.size)
        long = long * generator.uniform(0.6, 0.8, side.size)
    bark = BARK[generator.integers(len(BARK))] * 0.8
    grain = 1 + 0.5 * noise(dx * 6, dy * 1.5, scale * 0, 3)
    light = canvas.light.ambient * 0.7 + canvas.light.direct * 0.35
    canvas.paint(window, np.asarray(mask, dtype=bool), bark * light * grain, TREE, z)
