"""Mappings from clusters to classes: which labelled images fit them, and what they score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline.evaluation import MATCHINGS, Scores
from pipeline.selection import most_different, most_typical

Counts = Mapping[str, Mapping[str, np.ndarray]]
"""By predictor and sample of images: int64 ``(K, C)``, pixels by cluster and class."""
Fits = dict[str, dict[str, dict[str, np.ndarray]]]
"""By sample, predictor and matching: int64 ``(K,)``, a class or -1 for each cluster."""

DRAWS = 5  # of images at random
CHOICES = ("typical", "different", "random")  # of images to label


def fit_all(counts: Counts) -> Fits:
    """Fit every matching to every sample of images, for every predictor."""
    samples = dict.fromkeys(sample for by_sample in counts.values() for sample in by_sample)
    return {
        sample: {
            name: {matching: fit(tables[sample]) for matching, fit in MATCHINGS.items()}
            for name, tables in counts.items()
        }
        for sample in samples
    }


def choose_images(areas: np.ndarray, n: int, generator: np.random.Generator) -> dict[str, list]:
    """Choose n images to label in several ways, without labels: positions by name of the choice.

    Args:
        areas: ``(images, K)``, pixels of each cluster.
    """
    chosen = {"typical": most_typical(areas, n), "different": most_different(areas, n)}
    chosen |= {f"random {i}": generator.permutation(len(areas))[:n] for i in range(DRAWS)}
    return {name: places.tolist() for name, places in chosen.items()}


def origins_of(
    samples: Iterable[str], train: str, evaluated: str, *, oracle: bool
) -> dict[str, list[str]]:
    """Group samples by what is said of them: one sample, or several draws.

    With one split for both there is no ``train``: it would be the oracle by another name.

    Args:
        samples: names of labelled samples: splits, or choices of `choose_images`.
        train, evaluated: the splits that mappings may be fitted on, and that is scored.
        oracle: mappings fitted on the scored split itself are wanted.
    """
    names = list(samples)
    if evaluated not in names:
        return {}
    found = {"oracle": [evaluated]} if oracle else {}
    if train in names:
        return {**found, "train": [train]} if train != evaluated else found
    chosen = {
        choice: [name for name in names if name.split()[0] == choice and name != evaluated]
        for choice in CHOICES
    }
    return found | {choice: draws for choice, draws in chosen.items() if draws}


def summary(found: Sequence[Scores]) -> dict[str, float | int]:
    """Average the scores of several mappings."""
    return {
        "miou": float(np.mean([score.miou for score in found])),
        "accuracy": float(np.mean([score.accuracy for score in found])),
        "classes_covered": round(np.mean([score.classes_covered for score in found])),
    }
