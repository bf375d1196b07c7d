"""The CRFs: against a plain mean field and the program's package, at edges, in stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cache import heads
from cache.features import Features
from cache.images import read_row
from cache.index import read_index
from cache.segments import PREDICTORS, Segments
from pipeline.geometry import Geometry, Plan, plan
from pipeline.maps import crf
from pipeline.maps.crf import CRFS, POINTS, Pairs, as_logits, ours, program, refined_map
from pipeline.maps.upsampling import upsample_argmax
from stages.running import estimates
from tests.conftest import REPOSITORY, Project, tree_bytes


@pytest.fixture
def package() -> None:
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is of the extra crf")


def whole(height: int, width: int) -> Plan:
    """The plan of an image of one tile."""
    return plan(Geometry(10, min(height, width)), height, width)


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


def plain_field(energies: np.ndarray, image: np.ndarray, model: Pairs) -> np.ndarray:
    """Mean field with every pair's kernel written out, symmetrically normalised."""
    k, h, w = energies.shape
    y, x = np.mgrid[:h, :w].reshape(2, -1).astype(np.float64)
    apart = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    colours = image.reshape(-1, 3).astype(np.float64)
    unlike = ((colours[:, None] - colours) ** 2).sum(axis=2)
    near = np.exp(-apart / 2)
    alike = np.exp(-apart / (2 * model.reach**2) - unlike / (2 * model.colour**2))
    pairs = 0.0
    for weight, kernel in ((model.smoothness, near), (model.weight, alike)):
        scale = 1 / np.sqrt(kernel.sum(axis=1))
        pairs = pairs + weight * scale[:, None] * kernel * scale
    unary = energies.reshape(k, -1).astype(np.float64)
    field = np.exp(-unary)
    field /= field.sum(axis=0)
    for _ in range(model.iterations):
        field = np.exp(field @ pairs - unary)
        field /= field.sum(axis=0)
    return field.reshape(k, h, w)


def test_the_mean_field_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    energies = -np.log(rng.dirichlet(np.ones(3), size=(14, 21))).transpose(2, 0, 1)
    image = np.where(np.arange(21)[None, :, None] < 9, 60, 140) + rng.integers(0, 20, (14, 21, 3))
    model = Pairs(smoothness=3.0, weight=3.0, reach=0.7 * POINTS, colour=20.0, iterations=5)
    arguments = energies.astype(np.float32), image.astype(np.uint8), model
    found, expected = (
        crf._refined(torch.from_numpy(arguments[0]), *arguments[1:]).numpy(),
        plain_field(*arguments),
    )
    before = np.exp(-energies)
    # The lattice is no exact filter, so it is near, and far nearer than where it began.
    assert np.abs(found - expected).mean() < 0.1 * np.abs(before - expected).mean()
    assert (found.argmax(0) == expected.argmax(0)).mean() > 0.95
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-4)


def test_the_border_of_segments_moves_to_the_edge_of_colours() -> None:
    scores, image = halves(6, 8, 3), edge(84, 112, 56)  # patches change at pixel 42
    plain = upsample_argmax(scores, 84, 112)
    found = ours(scores, 84, 112, image)
    assert found.dtype == np.uint16 and set(np.unique(found)) == {0, 2}
    truth = np.where(np.arange(112) < 56, 0, 2)
    assert (plain == truth).mean() < 0.9
    assert (found == truth).mean() > 0.95


def test_scores_of_any_scale_and_offset_give_the_same_map() -> None:
    rng = np.random.default_rng(1)
    scores = torch.from_numpy(rng.normal(size=(5, 4, 6)).astype(np.float32))
    image = rng.integers(0, 255, (50, 75, 3)).astype(np.uint8)
    expected = ours(scores, 50, 75, image)
    assert len(np.unique(expected)) > 1
    for other in (100 * scores, 0.01 * scores, scores + 7.0):
        found = ours(other, 50, 75, image)
        assert (found == expected).mean() > 0.995  # up to rounding


def test_photos_of_any_size_are_looked_at() -> None:
    scores = halves(4, 6, 3)
    for height, width in ((20, 30), (29, 43), (400, 600)):
        image = edge(height, width, width // 2)
        found = ours(scores, height, width, image)
        assert found.shape == (height, width)
        assert (found[:, : width // 3] == 0).all() and (found[:, -width // 3 :] == 2).all()


def test_one_cluster_needs_no_field() -> None:
    scores = torch.zeros(3, 4, 5)
    scores[1] = 1.0
    found = ours(scores, 40, 50, np.zeros((40, 50, 3), np.uint8))
    np.testing.assert_array_equal(found, np.full((40, 50), 1))


def test_scores_that_are_not_finite_are_refused() -> None:
    scores = torch.zeros(3, 4, 5)
    scores[1, 2, 3] = torch.nan
    for refiner in (ours, program):
        with pytest.raises(ValueError, match="must be finite, found NaN"):
            refiner(scores, 40, 50, np.zeros((40, 50, 3), np.uint8))


def test_without_a_crf_maps_are_interpolated() -> None:
    scores = halves(4, 6, 2)
    found = refined_map(whole(40, 60), [scores])
    np.testing.assert_array_equal(found, upsample_argmax(scores, 40, 60))


@pytest.fixture
def scene() -> np.ndarray:
    """A drawn photo, uint8 ``(60, 80, 3)``, with some white in it."""
    path = min((REPOSITORY / "demo/scenes/images/val").glob("*.jpg"))
    image = np.asarray(Image.open(path).convert("RGB").resize((80, 60))).copy()
    image[:20, :30] = 255
    return image


def direct(logits: torch.Tensor, image: np.ndarray) -> np.ndarray:
    """The program's steps, spelled out in calls of the package: float32 ``(K, H, W)``."""
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    height, width = image.shape[:2]
    large = torch.nn.functional.interpolate(
        logits[None] / 0.3, (height, width), mode="bilinear", align_corners=False
    )
    model = DenseCRF2D(width, height, len(logits))
    model.setUnaryEnergy(unary_from_softmax(large.softmax(dim=1)[0].numpy()))
    model.addPairwiseGaussian(sxy=1, compat=3)
    model.addPairwiseBilateral(sxy=67, srgb=3, rgbim=np.array(image, order="C"), compat=4)
    return np.array(model.inference(10)).reshape(len(logits), height, width)


@pytest.mark.usefixtures("package")
def test_the_programs_crf_is_direct_calls_of_the_package(scene: np.ndarray) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 6, 8, generator=generator)
    guides = {"program": scene, "program_constant_guide": (scene / 255).astype(np.uint8)}
    found = {name: CRFS[name](logits, 60, 80, scene) for name in guides}
    for name, guide in guides.items():
        assert (found[name] == direct(logits, guide).argmax(axis=0)).mean() > 0.999
    assert set(np.unique(guides["program_constant_guide"])) == {0, 1}
    plain = upsample_argmax(logits, 60, 80)
    assert 0 < (found["program"] != plain).mean() < 0.5
    assert (found["program"] != found["program_constant_guide"]).any()


def test_other_scores_are_as_soft_as_logits_can_be(scene: np.ndarray) -> None:
    cosines = torch.randn(7, 6, 8, generator=torch.Generator().manual_seed(1)) / 50
    expected = refined_map(whole(60, 80), [cosines], scene, program, temperature=None)
    plain = upsample_argmax(cosines, 60, 80)
    far = refined_map(whole(60, 80), [cosines * 40], scene, program, temperature=None)
    assert (far == expected).mean() > 0.995  # up to rounding
    assert crf.lead(as_logits(cosines)) == pytest.approx(0.3 / 0.4)
    flat = refined_map(
        whole(60, 80), [cosines], scene, program
    )  # taken for logits, they say next to nothing
    assert 0 < (expected != plain).mean() < (flat != plain).mean()


@pytest.mark.usefixtures("package")
def test_the_lattice_filters_as_the_package_does(scene: np.ndarray) -> None:
    logits = 5 * torch.randn(7, 60, 80, generator=torch.Generator().manual_seed(0))
    energies = -logits.softmax(dim=0).clamp(min=1e-5).log()
    expected = direct(logits * 0.3, scene)
    np.testing.assert_allclose(crf._refined(energies, scene, crf.PROGRAM), expected, atol=2e-3)
    assert np.abs(expected - logits.softmax(dim=0).numpy()).max() > 0.5


def test_clusters_that_cannot_win_are_left_out(
    scene: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(40, 6, 8, generator=torch.Generator().manual_seed(0))
    logits[::2] -= 3
    seen: list[int] = []
    refined = crf._refined

    def counted(energies: torch.Tensor, image: np.ndarray, pairs: Pairs) -> torch.Tensor:
        seen.append(len(energies))
        return refined(energies, image, pairs)

    monkeypatch.setattr(crf, "_refined", counted)
    found = program(logits, 60, 80, scene)
    monkeypatch.setattr(crf, "HOPELESS", 0.0)
    assert (program(logits, 60, 80, scene) == found).mean() > 0.999
    assert seen[0] < seen[1] == 40


@pytest.mark.usefixtures("package")
def test_euclidean_k_means_goes_into_the_programs_crf_as_minus_squared_distances(
    project: Project,
) -> None:
    project.set("kmeans.spherical", False)
    project.set("segment.crf", "program")
    project.ok("prepare", "extract", "context", "graph", "train", "segment")
    centres = torch.from_numpy(heads.load_head("data/head")[1]["kmeans"]["centroids"])
    cache, agreed = Features.open("data/features.zarr"), []
    with Segments("data/segments.h5") as segments:
        for row in read_index("data/index.csv"):
            (tile,) = cache.tiles_of_image(row.id)
            tokens = torch.from_numpy(cache.tokens("last", tile)).double()
            nearness = -(torch.cdist(tokens, centres.double()) ** 2).float()
            shape = [int(cache.tiles[tile][side]) for side in ("grid_h", "grid_w")]
            field = direct(0.3 * nearness.T.reshape(-1, *shape), read_row(row))
            agreed.append((segments.read("kmeans", row.id) == field.argmax(axis=0)).mean())
    assert min(agreed) > 0.999


def test_a_guide_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(40, 50, 3\), found \(40, 51, 3\)"):
        program(torch.zeros(3, 4, 5), 40, 50, np.zeros((40, 51, 3), np.uint8))


def test_two_softmaxes_are_refused(project: Project) -> None:
    project.set("segment.crf", "program")
    project.set("segment.temperature", 0.3)
    project.fails("extract", "found a softmax of temperature 0.3", "choose the CRF `ours`")


def test_the_hours_of_a_crf_are_told_before_it_starts(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.set("segment.crf", "program")
    project.ok("prepare", "extract", "context", "graph", "train")
    monkeypatch.setattr(estimates, "WORTH_A_WORD", 0.0)
    output = project.run("segment").output
    assert "the CRF of 3 maps of each image takes about" in output.split("segmenting")[0]


def test_the_estimate_of_a_crf_grows_with_predictors_and_points(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(estimates.time, "perf_counter", lambda: float(next(clock)))
    photo, cpu = np.zeros((9, 9, 3), np.uint8), torch.device("cpu")

    def refine(scores: torch.Tensor, height: int, width: int, image: np.ndarray) -> np.ndarray:
        assert image.shape == (height, width, 3) and len(scores) == estimates.CLUSTERS
        return np.zeros((height, width), np.uint16)

    points = 126 * 126  # those of the probe, which takes 2 s by this clock
    assert "about 1 h 0 min on" in estimates.refinement_words(refine, photo, 3, 600 * points, cpu)
    assert estimates.refinement_words(refine, photo, 3, 9 * points, cpu) == ""


def _maps() -> dict[tuple[str, int], np.ndarray]:
    with Segments("data/segments.h5") as segments:
        return {(p, i): segments.read(p, i) for p in PREDICTORS for i in segments.images}


@pytest.mark.parametrize("name", ["ours", "program"])
def test_segment_and_predict_take_the_crf(project: Project, name: str) -> None:
    project.made("segment")
    plain, first = _maps(), tree_bytes(Path("data/segments.h5"))
    project.set("segment.crf", name)
    project.ok("segment")
    refined = _maps()
    changed = [(plain[key] != refined[key]).mean() for key in plain]
    assert 0 < np.mean(changed) < 0.5
    asked = ["--out", "found", "--device", "cpu", "--mapping", "none", "--crf", name]
    assert project.run("predict", "photos/images", *asked).exit_code == 0
    for row in read_index("data/index.csv"):
        written = np.asarray(Image.open(f"found/labels/{row.split}/{row.stem}.png"))
        np.testing.assert_array_equal(written, refined["ours", row.id])
    project.set("segment.crf", "none")
    project.ok("segment")
    assert tree_bytes(Path("data/segments.h5")) == first
