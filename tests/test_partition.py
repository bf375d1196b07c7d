from __future__ import annotations

import numpy as np
import pytest

from pipeline.graph.partition import partition


@pytest.mark.parametrize(("images", "size"), [(100, 16), (17, 16), (16, 16), (5, 16), (9, 1)])
def test_every_round_holds_every_image_once(images: int, size: int) -> None:
    ids = np.arange(1000, 1000 + images)
    rounds = partition(ids.tolist(), size, 3, np.random.default_rng(0))
    assert len(rounds) == 3
    for groups in rounds:
        np.testing.assert_array_equal(np.sort(np.concatenate(groups)), ids)
        sizes = [len(group) for group in groups]
        assert len(groups) == int(np.ceil(images / size))
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1
        assert all(group.dtype == np.int64 for group in groups)
        assert all((np.diff(group) > 0).all() for group in groups)


def test_rounds_mix_the_companions() -> None:
    first, second = partition(range(64), 8, 2, np.random.default_rng(0))
    companions = {frozenset(group.tolist()) for group in first}
    assert companions.isdisjoint(frozenset(group.tolist()) for group in second)


def test_the_generator_decides() -> None:
    def flat(seed: int) -> list[list[list[int]]]:
        rounds = partition(range(30), 7, 2, np.random.default_rng(seed))
        return [[group.tolist() for group in groups] for groups in rounds]

    assert flat(3) == flat(3)
    assert flat(3) != flat(4)


@pytest.mark.parametrize(("images", "size", "rounds"), [(0, 4, 1), (4, 0, 1), (4, 4, 0)])
def test_nothing_to_cut_is_an_error(images: int, size: int, rounds: int) -> None:
    text = f"{images} images, {size} a group, {rounds} rounds"
    with pytest.raises(ValueError, match=text):
        partition(range(images), size, rounds, np.random.default_rng(0))
