"""The stages eval and report on drawn scenes: files, values, and a page that stands alone."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache import results
from cache.commit import commit
from cache.index import read_index
from cache.segments import FORMAT, PREDICTORS, ImageMaps, write_maps
from cache.store import parts
from cache.store.artefact import read_manifest, write_manifest
from pipeline.drawing.colours import (
    NEUTRAL,
    _lab,
    blend,
    class_colours,
    colour,
    eigenfunction_image,
    palette,
)
from pipeline.evaluation import MATCHINGS
from stages import report
from stages.report import verdict
from stages.showing.drawing import encode
from tests.conftest import REPOSITORY, Project, begin, metrics_of

K = 6


def clusters_of(label: np.ndarray, predictor: str, number: int) -> np.ndarray:
    """Cluster maps with known flaws: `ours` splits class 1 in two, `kmeans` also takes 3 for 2."""
    clusters = label.astype(np.uint16)
    clusters[(label == 1) & (np.arange(label.shape[1]) % 2 == 0)] = 4
    if predictor == "kmeans" or (predictor == "ours_kmeans" and number % 2):
        clusters[label == 3] = 2
    return clusters


@pytest.fixture
def scored(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project as the segment stage leaves it, with made-up label maps."""
    monkeypatch.setattr(report, "IMAGES", 2)
    project.ok("prepare")
    write_made_up(project)
    return project


def write_made_up(project: Project) -> None:
    maps, rows = [], read_index("data/index.csv")
    for row in rows:
        path = project.folder / "photos" / "labels" / row.split / f"{row.stem}.png"
        label = np.asarray(Image.open(path)) if path.exists() else np.zeros((96, 128), np.uint8)
        ids = {name: clusters_of(label, name, row.id) for name in PREDICTORS}
        generator = np.random.default_rng(row.id)
        functions, margins = generator.normal(size=(5, 6, 8)), generator.uniform(size=(6, 8))
        seconds = generator.integers(0, K, (6, 8))
        maps.append(ImageMaps(row.id, {"full": ids}, functions, seconds, margins))
    clusters = dict.fromkeys(PREDICTORS, K)
    write_maps("data", "all", maps, clusters)
    losses = ((0, 1.5, 3), (1, -2.25, 4), (2, -3.0, 5))
    curve = [dict(zip(("step", "loss", "clusters"), row, strict=True)) for row in losses]
    manifest = {
        "format": FORMAT,
        "fingerprint": "e5f6",
        "head": "a1b2",
        "model": "test_vit",
        "seed": 0,
        "curve": results.write_curve("results/curve.csv", curve),
        "labelled": None,
        "clusters": clusters,
        "protocols": {"full": {"patch": 8, "short_side": 64}},
        "variants": ["full"],
        "images": {row.id: row.sha256 for row in rows},
    }
    parts.assemble("data", ["all"], "data/segments.h5", manifest)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """The folder of a scored project with its report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "IMAGES", 2)
        project = begin(tmp_path_factory.mktemp("drawn"), weights, patch)
        project.ok("prepare")
        write_made_up(project)
        project.ok("eval", "report")
    return project.folder


@pytest.fixture
def there(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In that folder, to look at what is in it."""
    monkeypatch.chdir(drawn)


def read_json(name: str) -> dict:
    return json.loads(Path("results", name).read_text())


def test_metrics_have_the_fixed_shape(scored: Project) -> None:
    scored.ok("eval")
    metrics = metrics_of()
    assert list(metrics) == list(PREDICTORS)
    for entry in metrics.values():
        assert list(entry) == ["k", "clusters_used", *MATCHINGS]
        assert type(entry["k"]) is int and type(entry["clusters_used"]) is int
        for matching in MATCHINGS:
            assert list(entry[matching]) == ["oracle", "train"]
            for score in entry[matching].values():
                assert list(score) == ["miou", "accuracy", "classes_covered"]
                assert [type(value) for value in score.values()] == [float, float, int]
    assert metrics["ours"]["clusters_used"] == 5
    assert metrics["kmeans"]["clusters_used"] == 4


def test_scores_are_what_the_made_up_maps_deserve(scored: Project) -> None:
    scored.ok("eval")
    metrics = metrics_of()
    perfect = {"miou": 100.0, "accuracy": 100.0, "classes_covered": 4}
    assert metrics["ours"]["majority_iou"] == {"oracle": perfect, "train": perfect}
    assert metrics["ours"]["majority_count"]["train"] == perfect
    # One-to-one, the two halves of class 1 cannot both be matched.
    pixels = np.concatenate([label.ravel() for label in labels_of(scored, "val")])
    half = np.count_nonzero(pixels == 1) / 2
    found = metrics["ours"]["hungarian"]["oracle"]
    assert found["accuracy"] == pytest.approx(100 * (1 - half / pixels.size))
    assert found["miou"] == pytest.approx(87.5)
    # Class 3 lies in cluster 2: missed, and a false claim of class 2.
    found = metrics["kmeans"]["majority_count"]["oracle"]
    two, three = np.count_nonzero(pixels == 2), np.count_nonzero(pixels == 3)
    assert found["miou"] == pytest.approx(100 * (2 + two / (two + three)) / 4)
    assert found["classes_covered"] == 3


def labels_of(project: Project, split: str) -> list[np.ndarray]:
    folder = project.folder / "photos" / "labels" / split
    return [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]


def test_the_train_mapping_is_fitted_on_training_labels_alone(scored: Project) -> None:
    scored.ok("eval")
    before = metrics_of(), read_json("mapping.json")
    assert before[1]["datasets"]["tiny"]["fitted_on"] == "train"
    for path in (scored.folder / "photos" / "labels" / "val").iterdir():
        # Classes 0 and 1 change places in the evaluation split.
        label = np.asarray(Image.open(path))
        Image.fromarray(np.choose(label, [1, 0, 2, 3]).astype(np.uint8)).save(path)
    scored.ok("prepare", "eval")
    after = metrics_of(), read_json("mapping.json")
    assert after[1] == before[1]
    assert after[0]["ours"]["majority_iou"]["oracle"]["miou"] == 100.0
    assert after[0]["ours"]["majority_iou"]["train"]["miou"] == 50.0


def test_counts_alone_give_every_pixel(scored: Project) -> None:
    scored.ok("eval")
    (found,) = results.read_evaluation("results", {}).values()
    counts = found.counts["full"]
    assert found.classes == ["sky", "meadow", "road", "box"]
    for name in PREDICTORS:
        assert {split: table.shape for split, table in counts[name].items()} == {
            "train": (K, 4),
            "val": (K, 4),
        }
        for split in ("train", "val"):
            pixels = np.concatenate([label.ravel() for label in labels_of(scored, split)])
            np.testing.assert_array_equal(counts[name][split].sum(0), np.bincount(pixels))


def test_the_summaries_hold_a_number_for_each_predictor(scored: Project) -> None:
    """That of the mapping fitted on other labels than those scored, where there is one."""
    scored.ok("eval")
    metrics = metrics_of()
    for measure in results.MEASURES:
        found = json.loads(Path(f"results/{measure}.json").read_text())["tiny"]
        for name in PREDICTORS:
            expected = metrics[name]["majority_iou"]["train"][measure]
            assert found[name] == pytest.approx(expected, abs=0.005)
    oracle = {"ours": {"k": 2, "majority_iou": {"oracle": {"miou": 12.345}}}}
    assert results.summary({"other": {"full": oracle}}, "miou") == {"other": {"ours": 12.35}}
    assert results.summary({"own": {"full": {"ours": {"k": 2}}}}, "miou") == {"own": {}}


def test_the_mapping_names_clusters(scored: Project) -> None:
    scored.ok("eval")
    (mapping,) = results.read_mappings("results/mapping.json").values()
    assert mapping.head == "a1b2"
    assert mapping.classes == ["sky", "meadow", "road", "box"]
    assert mapping.clusters["ours"]["majority_iou"].tolist() == [0, 1, 2, 3, 1, -1]
    assert set(mapping.clusters["kmeans"]) == set(MATCHINGS)


def test_per_class_ious_average_to_the_miou(scored: Project) -> None:
    scored.ok("eval")
    metrics = metrics_of()
    with open("results/per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("dataset", "variant", "predictor", "matching", "mapping", "class", "iou")
    ]
    assert len(rows) == len(PREDICTORS) * len(MATCHINGS) * 2 * 4
    for name in PREDICTORS:
        ious = [
            float(row["iou"])
            for row in rows
            if (row["predictor"], row["matching"], row["mapping"]) == (name, "hungarian", "train")
        ]
        assert np.mean(ious) == pytest.approx(metrics[name]["hungarian"]["train"]["miou"])


def test_the_printed_table_says_what_is_an_oracle(scored: Project) -> None:
    output = scored.run("eval").output
    assert re.search(r"ours\b.*5/6.*majority_iou.*100\.0/100\.0 \(4\).*100\.0/100\.0 \(4\)", output)
    assert "oracle: mapping fitted on the labels of val, the ones scored here." in output
    assert "train: mapping fitted on the labels of train only." in output


def test_the_report_ends_with_a_verdict_and_the_pages_to_open(scored: Project) -> None:
    scored.ok("eval")
    output = scored.run("report").output
    assert "used/K" not in output  # `eval` has printed the table
    metrics = metrics_of()
    ours, plain = (metrics[n]["majority_iou"]["oracle"]["miou"] for n in ("ours", "kmeans"))
    assert ours > plain
    said = f"ours beats kmeans at the same K: {ours:.1f} against {plain:.1f} mIoU (majority_iou"
    assert output.splitlines()[-2].startswith(f"In this run {said}")
    assert said in Path("results/report/index.html").read_text()
    folder = Path("results/report")
    told = f"Open {folder / 'index.html'} (scores, gallery) and {folder / 'clusters.html'} "
    assert output.splitlines()[-1].startswith(told)
    worse = {"ours": metrics["kmeans"], "kmeans": metrics["ours"]}
    assert verdict(worse).startswith("In this run ours does not beat kmeans")
    assert "does not beat" in verdict({"ours": metrics["ours"], "kmeans": metrics["ours"]})


def test_eval_without_training_labels_reports_the_oracle_alone(scored: Project) -> None:
    (scored.folder / "photos/labels/train").rename(scored.folder / "unused")
    scored.ok("prepare", "eval", "report")
    assert list(metrics_of()["ours"]["hungarian"]) == ["oracle"]
    assert read_json("mapping.json")["datasets"]["tiny"]["fitted_on"] == "val"
    page = Path("results/report/index.html").read_text()
    assert "fitted on the labels of val, which are also the ones scored: an oracle" in page


def test_one_split_for_both_has_no_train_mapping(scored: Project) -> None:
    scored.set("datasets.tiny", {"root": "photos", "train": "val", "eval": "val"})
    scored.ok("eval")
    assert list(metrics_of()["ours"]["majority_iou"]) == ["oracle"]


def test_labels_of_the_training_split_alone_still_name_clusters(scored: Project) -> None:
    (scored.folder / "photos/labels/val").rename(scored.folder / "unused")
    scored.ok("prepare", "eval", "report")
    assert metrics_of()["ours"] == {"k": K, "clusters_used": 5}
    assert read_json("mapping.json")["datasets"]["tiny"]["clusters"]["ours"]["hungarian"][0] == 0


def test_eval_and_report_without_any_labels(scored: Project) -> None:
    (scored.folder / "photos/labels").rename(scored.folder / "unused")
    scored.ok("prepare")
    result = scored.run("eval")
    assert result.exit_code == 0, result.output
    assert "The split val has no labels: there is nothing to score." in result.output
    assert metrics_of() == {
        name: {"k": K, "clusters_used": used}
        for name, used in zip(PREDICTORS, (5, 5, 4), strict=True)
    }
    assert read_json("counts.json")["datasets"]["tiny"]["classes"] == []
    assert read_manifest("results/mapping.json", "")["datasets"]["tiny"] == {
        "head": "a1b2",
        "fitted_on": None,
        "classes": [],
        "clusters": {},
    }
    scored.ok("report")
    page = Path("results/report/index.html").read_text()
    assert "nothing to score" in page and "ground truth" not in page
    assert '<a href="clusters.html">Now name the clusters</a>' in page and "<th" not in page
    assert not list(Path("results/report").glob("confusion*"))


def test_ignored_pixels_are_not_scored_but_their_clusters_are_in_use(scored: Project) -> None:
    for path in (scored.folder / "photos" / "labels" / "val").iterdir():
        label = np.asarray(Image.open(path))
        Image.fromarray(np.where(label == 3, 255, label).astype(np.uint8)).save(path)
    scored.ok("prepare", "eval")
    found = metrics_of()["kmeans"]
    assert found["majority_iou"]["oracle"]["miou"] == 100.0
    assert metrics_of()["ours"]["clusters_used"] == 5


def test_a_label_map_of_another_size_is_an_error(scored: Project) -> None:
    for kind, split in (("images", "val"), ("labels", "val")):
        path = sorted((scored.folder / "photos" / kind / split).iterdir())[0]
        Image.open(path).crop((0, 0, 128, 90)).save(path)
    scored.ok("prepare")
    scored.fails("eval", "must hold a label map of every image", "1 of 9 lack theirs (000)")
    assert not Path("results/metrics.json").exists()


def test_a_label_edited_after_prepare_is_an_error(scored: Project) -> None:
    path = scored.folder / "photos" / "labels" / "val" / "001.png"
    Image.fromarray(np.zeros((96, 128), dtype=np.uint8)).save(path)
    scored.fails("eval", "001.png has changed since it was checked: run prepare again.")


def test_missing_label_maps_are_an_error(scored: Project) -> None:
    Image.new("RGB", (128, 96)).save(scored.folder / "photos/images/val/new.jpg")
    Image.new("L", (128, 96)).save(scored.folder / "photos/labels/val/new.png")
    scored.ok("prepare")
    scored.fails("eval", "1 of 10 lack theirs", "run `eigenseg segment`")


def test_report_needs_the_results_first(scored: Project) -> None:
    scored.fails("report", "counts.json is missing: run `eigenseg eval`")
    scored.ok("eval")
    Path("results/curve.csv").unlink()
    scored.fails("report", "curve.csv is missing: run `eigenseg train`")
    assert not Path("results/report").exists()


@pytest.mark.usefixtures("there")
def test_the_page_stands_alone() -> None:
    page = Path("results/report/index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    pictures = [source for source in sources if source != "clusters.html"]  # the atlas beside it
    assert pictures and all(source.startswith("data:image/png;base64,") for source in pictures)
    assert len(pictures) < len(sources)
    for source in set(sources):
        page = page.replace(source, "")
    assert not re.search(r"//|url\(|@import|<script src|<link", page)


@pytest.mark.usefixtures("there")
def test_every_picture_is_a_file_that_opens() -> None:
    pictures = {path.stem: path for path in Path("results/report").glob("*.png")}
    kinds = ["image", "truth", *PREDICTORS, *(f"psi_{i}" for i in range(5))]
    expected = {f"gallery_{number:02d}_{kind}" for number in range(2) for kind in kinds}
    expected |= {"curve_loss", "curve_clusters", "per_class_iou"}
    expected |= {f"confusion_{name}" for name in PREDICTORS}
    assert set(pictures) == expected
    page = Path("results/report/index.html").read_text()
    assert page.count('<img src="data:') == len(expected)
    for path in pictures.values():
        with Image.open(path) as image:
            image.load()
            assert image.width >= 300


@pytest.mark.usefixtures("there")
def test_the_gallery_shows_predictions_in_the_colours_of_their_classes() -> None:

    def picture(name: str) -> np.ndarray:
        return np.asarray(Image.open(f"results/report/gallery_00_{name}.png"))

    # `ours` is perfect under its mapping, so its picture is the ground truth's.
    np.testing.assert_array_equal(picture("ours"), picture("truth"))
    assert (picture("kmeans") != picture("truth")).any()


@pytest.mark.usefixtures("there")
def test_the_page_explains_itself() -> None:
    page = Path("results/report/index.html").read_text()
    for text in (
        "Bold: the best of a column",
        "ours_kmeans: K-means on the features inside",
        "loss: what training lowers",
        "segment.names=names.json",
        "group_patches: 144",  # a parameter of this run
        datetime.now(UTC).date().isoformat(),
    ):
        assert text in page, text
    assert "dinov2" not in page  # a backbone that this run has not used
    assert commit("/") is None and re.match(r"[0-9a-f]{7,} of 20\d\d-", commit(REPOSITORY) or "")


def test_report_is_made_anew_and_the_same(scored: Project) -> None:
    scored.ok("eval", "report")
    before = {path.name: path.read_bytes() for path in Path("results/report").iterdir()}
    Path("results/report/left_over.png").write_bytes(b"old")
    scored.ok("report")
    after = {path.name: path.read_bytes() for path in Path("results/report").iterdir()}
    assert after == before
    assert [path.name for path in Path("results").iterdir() if path.name.startswith(".")] == []


def test_names_are_escaped_in_the_page(scored: Project) -> None:
    names = "<b>sky</b>\nmeadow & more\n$\\frac{$\n$box\n"
    (scored.folder / "photos/classes.txt").write_text(names)
    scored.ok("prepare", "eval", "report")
    page = Path("results/report/index.html").read_text()
    assert "&lt;b&gt;sky&lt;/b&gt;" in page and "meadow &amp; more" in page
    assert "<b>sky" not in page


def test_stale_results_are_an_error(scored: Project) -> None:
    scored.ok("eval")
    counts = read_manifest("results/counts.json", "")
    counts["made_from"]["segments"] = "c3d4"
    write_manifest("results/counts.json", counts)
    scored.fails(
        "report",
        "counts.json must be of the same segments, found the counts",
        "run `eigenseg eval`",
    )


def test_palette_is_stable_distinct_and_leaves_grey_out() -> None:
    colours = palette(256)
    assert colours.shape == (256, 3) and colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == 256
    np.testing.assert_array_equal(palette(20), colours[:20])
    assert np.ptp(colours.astype(int), axis=1).min() > 20
    few = palette(11).astype(int)
    gaps = np.linalg.norm(few[:, None] - few[None], axis=-1)[~np.eye(11, dtype=bool)]
    assert gaps.min() > 60
    assert palette(5000).shape == (5000, 3)


def test_the_first_colours_are_told_apart_without_red_or_green_cones() -> None:
    for number in range(3):
        rgb = palette(12) / 255.0
        if number:  # Vienot, Brettel and Mollon 1999, another model than the palette's
            rows = ([0.11238, 0.88762, 0], [0.29275, 0.70725, 0])[number - 1]
            blue = ([0.00401, -0.00401, 1], [-0.02234, 0.02234, 1])[number - 1]
            linear = rgb**2.2 @ np.array([rows, rows, blue]).T
            rgb = np.clip(linear, 0, 1) ** (1 / 2.2)
        lab = _lab(rgb * 255.0)
        gaps = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[~np.eye(12, dtype=bool)]
        assert gaps.min() > 10


def test_pixels_of_no_class_are_grey() -> None:
    colours = class_colours(3)
    assert tuple(colours[-1]) == NEUTRAL
    drawn = colour(np.array([[0, 2, 255]], dtype=np.uint8), colours)
    np.testing.assert_array_equal(drawn[0], [colours[0], colours[2], NEUTRAL])
    np.testing.assert_array_equal(colour(np.array([[-1]]), colours)[0, 0], NEUTRAL)


def test_eigenfunctions_are_blue_below_and_red_above_their_median() -> None:
    values = np.array([[-4.0, 0.0, 4.0]], dtype=np.float16)
    low, middle, high = eigenfunction_image(values)[0].astype(int)
    assert low[2] > low[0] + 80 and high[0] > high[2] + 80
    assert np.ptp(middle) < 10
    np.testing.assert_array_equal(eigenfunction_image(values), eigenfunction_image(values * 3 + 1))
    assert np.ptp(eigenfunction_image(np.ones((2, 2)))) < 10


def test_blend_mixes_and_checks_the_sizes() -> None:
    image, colours = np.zeros((1, 2, 3), np.uint8), np.full((1, 2, 3), 200, np.uint8)
    assert blend(image, colours, 0.25).tolist() == [[[50] * 3] * 2]
    with pytest.raises(ValueError, match=r"found \(1, 2, 3\) and \(2, 1, 3\)"):
        blend(image, colours.reshape(2, 1, 3), 0.5)


def test_encode_resizes() -> None:
    pixels = np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8)
    image = np.asarray(Image.open(io.BytesIO(encode(pixels, 4, 2, smooth=False))))
    assert image.shape == (2, 4, 3)
    assert image[0, 1].tolist() == [255, 0, 0] and image[1, 2].tolist() == [0, 0, 255]
