"""The CRF: against a plain mean field, at edges and scales, and its way to the label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cache.index import read_index
from cache.segments import PREDICTORS, Segments
from pipeline.maps import crf
from pipeline.maps.crf import POINTS, SMOOTHNESS, label_map, refine
from pipeline.maps.upsampling import upsample_argmax
from tests.conftest import Project, tree_bytes

SOME = 5  # iterations


@pytest.fixture
def package() -> None:
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is of the extra crf")


def edge(height: int, width: int, column: int) -> np.ndarray:
    """An image that is dark up to a column, and light from there."""
    image = np.full((height, width, 3), 230, np.uint8)
    image[:, :column] = 20
    return image


def halves(h: int, w: int, columns: int) -> torch.Tensor:
    """Scores of three clusters: 0 wins in the first columns, 2 in the others, 1 nowhere."""
    scores = torch.zeros(3, h, w)
    scores[0, :, :columns] = 1.0
    scores[2, :, columns:] = 1.0
    return scores


def plain_field(energies: np.ndarray, image: np.ndarray, iterations: int) -> np.ndarray:
    """Mean field with every pair's kernel written out, symmetrically normalised."""
    k, h, w = energies.shape
    y, x = np.mgrid[:h, :w].reshape(2, -1).astype(np.float64)
    apart = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    colours = image.reshape(-1, 3).astype(np.float64)
    unlike = ((colours[:, None] - colours) ** 2).sum(axis=2)
    near = np.exp(-apart / 2)
    alike = np.exp(-apart / (2 * (crf.REACH * POINTS) ** 2) - unlike / (2 * crf.COLOUR**2))
    pairs = 0.0
    for weight, kernel in ((SMOOTHNESS, near), (crf.WEIGHT, alike)):
        scale = 1 / np.sqrt(kernel.sum(axis=1))
        pairs = pairs + weight * scale[:, None] * kernel * scale
    unary = energies.reshape(k, -1).astype(np.float64)
    field = np.exp(-unary)
    field /= field.sum(axis=0)
    for _ in range(iterations):
        field = np.exp(field @ pairs - unary)
        field /= field.sum(axis=0)
    return field.reshape(k, h, w)


@pytest.mark.usefixtures("package")
def test_the_mean_field_is_that_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    energies = -np.log(rng.dirichlet(np.ones(3), size=(14, 21))).transpose(2, 0, 1)
    image = np.where(np.arange(21)[None, :, None] < 9, 60, 140) + rng.integers(0, 20, (14, 21, 3))
    for name, value in (("WEIGHT", 3.0), ("REACH", 0.7), ("COLOUR", 20.0)):
        monkeypatch.setattr(crf, name, value)
    arguments = energies.astype(np.float32), image.astype(np.uint8), SOME
    found, expected = crf._mean_field(*arguments), plain_field(*arguments)
    before = np.exp(-energies)
    # The library filters on a lattice, so it is near, and far nearer than where it began.
    assert np.abs(found - expected).mean() < 0.1 * np.abs(before - expected).mean()
    assert (found.argmax(0) == expected.argmax(0)).mean() > 0.95
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-4)


@pytest.mark.usefixtures("package")
def test_the_border_of_segments_moves_to_the_edge_of_colours() -> None:
    scores, image = halves(6, 8, 3), edge(84, 112, 56)  # patches change at pixel 42
    plain = upsample_argmax(scores, 84, 112)
    found = refine(scores, 84, 112, image, SOME)
    assert found.dtype == np.uint16 and set(np.unique(found)) == {0, 2}
    truth = np.where(np.arange(112) < 56, 0, 2)
    assert (plain == truth).mean() < 0.9
    assert (found == truth).mean() > 0.95


@pytest.mark.usefixtures("package")
def test_scores_of_any_scale_and_offset_give_the_same_map() -> None:
    rng = np.random.default_rng(1)
    scores = torch.from_numpy(rng.normal(size=(5, 4, 6)).astype(np.float32))
    image = rng.integers(0, 255, (50, 75, 3)).astype(np.uint8)
    expected = refine(scores, 50, 75, image, SOME)
    assert len(np.unique(expected)) > 1
    for other in (100 * scores, 0.01 * scores, scores + 7.0):
        found = refine(other, 50, 75, image, SOME)
        assert (found == expected).mean() > 0.995  # up to rounding


@pytest.mark.usefixtures("package")
def test_photos_of_any_size_are_looked_at() -> None:
    scores = halves(4, 6, 3)
    for height, width in ((20, 30), (29, 43), (400, 600)):
        image = edge(height, width, width // 2)
        found = refine(scores, height, width, image, SOME)
        assert found.shape == (height, width)
        assert (found[:, : width // 3] == 0).all() and (found[:, -width // 3 :] == 2).all()


def test_one_cluster_needs_no_field() -> None:
    scores = torch.zeros(3, 4, 5)
    scores[1] = 1.0
    found = refine(scores, 40, 50, np.zeros((40, 50, 3), np.uint8), SOME)
    np.testing.assert_array_equal(found, np.full((40, 50), 1))


def test_scores_that_are_not_finite_are_refused() -> None:
    scores = torch.zeros(3, 4, 5)
    scores[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="must be finite, found NaN"):
        refine(scores, 40, 50, np.zeros((40, 50, 3), np.uint8), SOME)


def test_without_a_crf_maps_are_interpolated() -> None:
    scores = halves(4, 6, 2)
    np.testing.assert_array_equal(label_map(scores, 40, 60), upsample_argmax(scores, 40, 60))


def test_without_its_package_the_extra_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crf, "find_spec", lambda _: None)
    project.set("segment.crf", 5)
    project.fails("segment", '-e ".[crf]"`', "0 iterations")


def _maps() -> dict[tuple[str, int], np.ndarray]:
    with Segments("data/segments.h5") as segments:
        return {(p, i): segments.read(p, i) for p in PREDICTORS for i in segments.images}


@pytest.mark.usefixtures("package")
def test_segment_and_predict_take_the_crf(project: Project) -> None:
    project.ok("prepare", "extract", "context", "graph", "train", "segment")
    plain, first = _maps(), tree_bytes(Path("data/segments.h5"))
    project.set("segment.crf", 5)
    project.ok("segment")
    refined = _maps()
    changed = [(plain[key] != refined[key]).mean() for key in plain]
    assert 0 < np.mean(changed) < 0.5
    asked = ["--out", "found", "--device", "cpu", "--mapping", "none", "--crf", "5"]
    assert project.run("predict", "photos/images", *asked).exit_code == 0
    for row in read_index("data/index.csv"):
        written = np.asarray(Image.open(f"found/labels/{row.split}/{row.stem}.png"))
        np.testing.assert_array_equal(written, refined["ours", row.id])
    project.set("segment.crf", 0)
    project.ok("segment")
    assert tree_bytes(Path("data/segments.h5")) == first
