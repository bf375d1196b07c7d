"""Cars of drawn scenes: a body and a cabin of flat faces in true perspective."""

from __future__ import annotations

import numpy as np

from pipeline.scenes.canvas import CAR, Canvas, Outline, box, disc, flat, mix, noise, rgb, smooth

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
ACROSS, UP, ALONG = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
BLACK, WHITE = rgb(16, 16, 18), rgb(228, 226, 205)


def car(canvas: Canvas, generator: np.random.Generator, x: float, z: float, away: bool) -> None:
    """Paint a car whose near end is at (x, z), along the road. ``away``: it shows its rear."""
    _Car(canvas, generator, x, z, away).paint()


class _Car:
    """One car: its measures in metres, its materials and its faces from far to near."""

    def __init__(
        self, canvas: Canvas, generator: np.random.Generator, x: float, z: float, away: bool
    ) -> None:
        self.canvas, self.light, self.x, self.z, self.away = canvas, canvas.light, x, z, away
        self.colour = PAINTS[generator.integers(len(PAINTS))]
        tall = generator.uniform(0.95, 1.2)
        self.wide, self.long = 1.78 * (0.5 + 0.5 * tall), generator.uniform(3.9, 4.6)
        self.waist, self.roof, self.wheel = 0.92 * tall, 1.46 * tall, 0.31 * tall
        rear, front = (0.35, 1.35) if generator.random() < 0.5 else (0.7, 1.3)
        near, far = (rear, front) if away else (front, rear)
        self.lean = 0.5 if near < 1 else 0.75  # how far the near pane leans back
        self.start, self.stop = near, self.long - far  # the cabin, from the near end
        self.side = self.wide / 2 if x < 0 else -self.wide / 2  # the flank that is seen
        self.mirror = self.light.horizon * 0.10

    def paint(self) -> None:
        """Paint it: undercarriage, body, wheels, near end, cabin."""
        canvas, half = self.canvas, self.wide / 2
        for at in (0.72, self.long - 0.75):  # wheels of the far side, seen below the body
            self._face(self.x - self.side * 0.85, ALONG, _tyre(at, self.wheel), BLACK)
        flank = self.x + self.side
        shape = [(0, 0.22), (0, 0.94 * self.waist), (0.06, self.waist)]
        shape += [(self.long - 0.1, self.waist), (self.long, 0.8 * self.waist), (self.long, 0.22)]
        canvas.plane((flank, 0, self.z), ALONG, UP, shape, self._body, CAR)
        top = box(self.wide, self.long)
        canvas.plane((self.x - half, self.waist, self.z), ACROSS, ALONG, top, self._top, CAR)
        large = canvas.camera.focal * self.wheel > 6 * max(self.z, 1.0)
        rings = ((1.22, 8), (1.0, 24), (0.62, 150), (0.2, 60)) if large else ((1.0, 24),)
        for at in (0.72, self.long - 0.75):
            for radius, tone in rings:
                rim = disc(at, self.wheel, radius * self.wheel, radius * self.wheel)
                self._face(flank, ALONG, rim, rgb(tone, tone, tone))
        for at in (0.17, self.wide - 0.17):
            tyre = _tyre(at, 0.1)
            canvas.plane((self.x - half, 0, self.z + 0.1), ACROSS, UP, tyre, flat(BLACK), CAR)
        end = [(u, v + 0.2) for u, v in box(self.wide, self.waist - 0.2)]
        canvas.plane((self.x - half, 0, self.z), ACROSS, UP, end, self._end, CAR)
        self._cabin()

    def _face(
        self, x: float, along: tuple[float, float, float], outline: Outline, tone: np.ndarray
    ) -> None:
        self.canvas.plane((x, 0, self.z), along, UP, outline, flat(tone), CAR)

    def _cabin(self) -> None:
        canvas, inset, over = self.canvas, 0.13, self.roof - self.waist
        start, stop, lean = self.start, self.stop, self.lean
        origin = (self.x + self.side - np.sign(self.side) * inset, self.waist, self.z)
        cabin = [(start, 0), (start + lean, over), (stop - 0.5, over), (stop, 0)]
        canvas.plane(origin, ALONG, UP, cabin, self._body, CAR)
        post, high = (start + stop) / 2, over - 0.1
        first = [
            (start + 0.2, 0.03),
            (start + 0.2 + 0.75 * lean, high),
            (post - 0.05, high),
            (post - 0.05, 0.03),
        ]
        second = [
            (post + 0.05, 0.03),
            (post + 0.05, high),
            (stop - 0.62, high),
            (stop - 0.22, 0.03),
        ]
        for window in (first, second):
            canvas.plane(origin, ALONG, UP, window, self._panes, CAR)
        narrow, slope = self.wide - 2 * inset, float(np.hypot(lean, over))
        tilt = (0.0, over / slope, lean / slope)
        corner = (self.x - narrow / 2, self.waist, self.z + start)
        canvas.plane(corner, ACROSS, tilt, box(narrow, slope), self._body, CAR)
        pane = [
            (0.09, 0.05),
            (narrow - 0.09, 0.05),
            (narrow - 0.16, slope - 0.08),
            (0.16, slope - 0.08),
        ]
        canvas.plane(corner, ACROSS, tilt, pane, self._panes, CAR)
        roof = (self.x - narrow / 2, self.roof, self.z + start + lean)
        canvas.plane(roof, ACROSS, ALONG, box(narrow, stop - start - lean - 0.5), self._top, CAR)

    def _body(self, u: np.ndarray, v: np.ndarray, size: np.ndarray, on: np.ndarray) -> np.ndarray:
        gloss = smooth(0.35, 0.95, v / self.waist)[..., None]
        dirty = 1 + 0.12 * noise(u * 2, v * 3, octaves=3)[..., None]
        seam = (np.abs(u % 1.15 - 0.55) < 0.012) | (np.abs(v - 0.62 * self.waist) < 0.012)
        colour = self.colour * (0.65 + 0.35 * gloss) * dirty
        colour = np.where((v < 0.28)[..., None], BLACK, colour)
        return colour * on * (1 - 0.4 * seam[..., None]) + self.mirror * gloss

    def _end(self, u: np.ndarray, v: np.ndarray, size: np.ndarray, on: np.ndarray) -> np.ndarray:
        colour = self._body(u * 0 + 0.1, v, size, on)
        across, half = np.abs(u - self.wide / 2), self.wide / 2
        lamp = (np.abs(across - half * 0.8) < 0.19) & (np.abs(v - 0.72 * self.waist) < 0.09)
        glow = rgb(190, 22, 18) if self.away else rgb(235, 235, 225)
        colour = np.where(lamp[..., None], glow * (on + 0.25 + 0.5 * self.light.lamps), colour)
        grille = (across < 0.5) & (np.abs(v - 0.62 * self.waist) < 0.07) & (not self.away)
        plate = (across < 0.27) & (np.abs(v - 0.44) < 0.06)
        colour = np.where(grille[..., None], BLACK * on, colour)
        return np.where(plate[..., None], WHITE * on, colour)

    def _top(self, u: np.ndarray, v: np.ndarray, size: np.ndarray, on: np.ndarray) -> np.ndarray:
        snow = 0.8 * self.light.snow * (noise(u * 1.5, v * 1.5, octaves=3) > -0.3)
        return mix(self.colour, rgb(236, 240, 246), snow) * on + self.mirror * 1.6

    def _panes(self, u: np.ndarray, v: np.ndarray, size: np.ndarray, on: np.ndarray) -> np.ndarray:
        """What the glass mirrors: sky above, dark below, streaks."""
        sky = smooth(0.0, 0.55, v + 0.25 * noise((u + self.x) * 1.1, v * 1.4, octaves=3))
        return mix(rgb(14, 17, 20), self.light.horizon * 0.55 + 0.02, 0.75 * sky)


def _tyre(at: float, half: float) -> Outline:
    """A tyre seen edge on: a rectangle around ``at`` that stands on the ground."""
    return [(at - half, 0.0), (at + half, 0.0), (at + half, 0.36), (at - half, 0.36)]
