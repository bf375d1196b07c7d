"""Light, weather and season of drawn scenes: each weather changes a clear day."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from demo.draw.canvas import Light, rgb, tint

Generator = np.random.Generator
_SEASONS = (  # spring, summer, late summer, autumn: crowns, grass
    ((rgb(98, 134, 50), rgb(126, 150, 66), rgb(84, 120, 52)), rgb(98, 132, 54)),
    ((rgb(58, 92, 40), rgb(76, 104, 46), rgb(48, 80, 44)), rgb(92, 118, 54)),
    ((rgb(78, 96, 44), rgb(96, 104, 50), rgb(64, 82, 40)), rgb(128, 124, 66)),
    ((rgb(176, 104, 36), rgb(158, 72, 34), rgb(180, 144, 52), rgb(92, 96, 46)), rgb(106, 112, 56)),
)


def _sun(generator: Generator, low: float, high: float) -> np.ndarray:
    """A unit vector towards a sun that stands ``low``..``high`` degrees above the horizon."""
    up = np.deg2rad(generator.uniform(low, high))
    turn = generator.uniform(0, 2 * np.pi)
    flat = np.cos(up)
    return np.array([flat * np.cos(turn), np.sin(up), flat * np.sin(turn)], np.float32)


def weather(generator: Generator) -> Light:
    """The light of one scene: a season and a clear day, changed by its weather."""
    season = int(generator.integers(len(_SEASONS)))
    foliage, grass = _SEASONS[season]
    sunny = Light(
        sun=_sun(generator, 28, 62),
        direct=tint(1.0, 0.93, 0.8) * generator.uniform(1.5, 2.0),
        ambient=tint(0.32, 0.39, 0.5),
        zenith=rgb(62, 116, 190),
        horizon=rgb(186, 208, 226),
        clouds=generator.uniform(0.1, 0.65),
        haze=0.0012,
        foliage=foliage,
        grass=grass * generator.uniform(0.85, 1.15),
        bare=0.3 if season == 3 else 0.0,
    )
    change = (_bright, _bright, _bright, _overcast, _overcast, _rain, _dusk, _fog, _snow)
    return change[generator.integers(len(change))](sunny, generator)


def _bright(light: Light, generator: Generator) -> Light:
    return light


def _overcast(light: Light, generator: Generator) -> Light:
    return replace(
        light,
        direct=light.direct * 0.12,
        ambient=tint(0.86, 0.9, 0.95),
        zenith=rgb(150, 162, 178),
        horizon=rgb(206, 210, 214),
        clouds=generator.uniform(0.8, 1.0),
        haze=0.0025,
    )


def _rain(light: Light, generator: Generator) -> Light:
    grey = _overcast(light, generator)
    return replace(
        grey,
        ambient=grey.ambient * 0.62,
        horizon=rgb(164, 170, 176),
        zenith=rgb(110, 118, 130),
        haze=0.006,
        wet=1.0,
        rain=1.0,
    )


def _dusk(light: Light, generator: Generator) -> Light:
    return replace(
        light,
        sun=_sun(generator, 7, 14),
        direct=tint(1.0, 0.55, 0.25) * 1.1,
        ambient=tint(0.34, 0.34, 0.46),
        zenith=rgb(70, 88, 138),
        horizon=rgb(240, 186, 136),
        clouds=generator.uniform(0.3, 0.7),
        haze=0.002,
        lamps=generator.uniform(0.3, 0.7),
    )


def _fog(light: Light, generator: Generator) -> Light:
    grey = _overcast(light, generator)
    return replace(grey, haze=generator.uniform(0.012, 0.022), horizon=rgb(196, 200, 204))


def _snow(light: Light, generator: Generator) -> Light:
    clear = light if generator.random() < 0.5 else _overcast(light, generator)
    return replace(clear, snow=generator.uniform(0.5, 1.0), bare=0.8, grass=rgb(122, 116, 80))
