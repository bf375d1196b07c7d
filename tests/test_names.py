"""Names of format 2: parts of clusters, single regions, and names that pass on to another head."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import naming
from cache import heads
from cache.index import read_index
from cache.names import (
    IGNORED,
    NO_CLASS,
    Correction,
    Names,
    Split,
    read_any_names,
    read_names,
    write_names,
)
from cache.segments import Segments
from pipeline.maps import atlas
from pipeline.maps.named import carry, named, region_pixels, rivals
from tests.conftest import Project
from tests.test_atlas import finished, page_data  # noqa: F401
from tests.test_atlas import named as named_project  # noqa: F401
from tests.test_atlas import write_names as write_old

K = 6


def some_names(head: str, sha256: str = "f" * 64) -> Names:
    cells = np.zeros((12, 16), bool)
    cells[2:9, 3:12] = True
    return Names(
        head,
        ["up", "down, far"],
        np.array([[9, 8, 7], [255, 0, 1]], np.uint8),
        np.array([1, 0, -1, 0, -2, -3]),
        {4: Split(np.array([0, 1, 1, 0, 0, 2]), np.array([0, 1, -3]))},
        [
            Correction("val/000", sha256, cells, 1, 1),
            Correction("val/000", sha256, ~cells, None, -3),
        ],
        {"a" * 64: np.array([[0, 1, -1], [-2, -3, 1]])},
    )


def test_a_file_of_names_gives_all_back(tmp_path: Path) -> None:
    names = some_names("a1")
    write_names(tmp_path / "names.json", names)
    found = read_names(tmp_path / "names.json", "a1", K)
    assert found.classes == names.classes and found.codes.tolist() == names.codes.tolist()
    np.testing.assert_array_equal(found.colours, names.colours)
    assert found.values.tolist() == [1, 0, 255, 0, 255, 255]
    assert found.by_rival[4].tolist() == [0, 1, 1, 0, 0, 255]
    for one, other in zip(found.corrections, names.corrections, strict=True):
        np.testing.assert_array_equal(one.cells, other.cells)
        assert one[:2] + one[3:] == other[:2] + other[3:]
    np.testing.assert_array_equal(found.photos["a" * 64], names.photos["a" * 64])
    assert [one.value for one in found.corrections] == [1, NO_CLASS]


def test_rivals_are_the_best_other_clusters() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 6, 8))
    ranked = np.argsort(-scores, axis=0)
    ids = ranked[0].copy()
    ids[:, 3] = ranked[1][:, 3]  # the pixels' own interpolation gave another winner
    large = np.kron(ids, np.ones((4, 4), int))
    best = scores.copy()
    np.put_along_axis(best, ids[None], -np.inf, axis=0)
    # At the centres of patches alone the first cluster of the patch is known.
    found = rivals(large, ranked[1])
    expected = np.kron(best.argmax(0), np.ones((4, 4), int))
    same = large == np.kron(ranked[0], np.ones((4, 4), int))
    np.testing.assert_array_equal(found[same], expected[same])


def test_parts_group_like_rivals() -> None:
    k = 6
    pairs = np.zeros((k, k), int)
    pairs[0] = [0, 30, 30, 20, 19, 1]
    like = np.full((k, k), 0.01)
    like[1, 2] = like[2, 1] = like[3, 4] = like[4, 3] = 0.9
    like[3:5, 5] = like[5, 3:5] = 0.5
    np.fill_diagonal(like, 0)
    parts = atlas.divide(like, pairs, 2)
    assert parts[0, 1] == parts[0, 2] == 0 and parts[0, 3] == parts[0, 4] == 1
    assert atlas.divide(like, pairs, 3)[0, 5] == 0  # too small to be a part
    assert not parts[1:].any()


def test_named_pixels_follow_clusters_parts_and_regions() -> None:
    rng = np.random.default_rng(1)
    ids, seconds = (
        np.kron(rng.integers(0, 3, (5, 5)), np.ones((4, 4), int)),
        rng.integers(0, 3, (5, 5)),
    )
    values = np.array([7, 8, 9], np.uint8)
    found = named(ids, seconds, values, {1: np.array([20, 21, 22], np.uint8)})
    rival = rivals(ids, seconds)
    for y, x in np.ndindex(ids.shape):
        assert found[y, x] == (20 + rival[y, x] if ids[y, x] == 1 else values[ids[y, x]])
    cells = np.zeros((10, 10), bool)
    cells[2:5, 2:5] = True
    np.testing.assert_array_equal(region_pixels(cells, ids, None), atlas.shrink(cells, 20, 20))
    own = region_pixels(cells, ids, 2)
    assert (
        not (own & (ids != 2)).any() and (own | ~(atlas.shrink(cells, 20, 20) & (ids == 2))).all()
    )


def test_a_sample_is_fair_and_of_different_photos() -> None:
    rng = np.random.default_rng(2)
    photo, area = rng.integers(0, 40, 300), rng.integers(1, 60, 300)
    drawn = atlas.sample(photo, area, 12)
    assert len(set(photo[drawn].tolist())) == len(drawn) <= 12
    assert area[drawn].mean() > area.mean()  # by area
    gaps = np.diff(np.sort(photo[drawn]))
    assert len(drawn) > 8 and gaps.max() <= 3 * 40 / 12
    assert atlas.sample(photo[:0], area[:0], 4) == [] and atlas.sample(photo[:1], area[:1], 4) == [
        0
    ]
    # Over all shifts of the areas every region is drawn as often as its area says.
    one, large = np.arange(5), np.array([10, 10, 10, 10, 60])
    assert 4 in atlas.sample(one, large, 2)


def test_the_spread_is_that_of_the_scores() -> None:
    rng = np.random.default_rng(3)
    scores, ids = rng.normal(size=(500, 4)), rng.integers(0, 3, 500)
    scores[ids == 2] *= 0.1
    moments = atlas.Moments.none(4, 4)
    for half in (slice(0, 250), slice(250, 500)):
        moments.add(ids[half], scores[half])
    whole = scores.var(axis=0).sum()
    expected = [scores[ids == i].var(axis=0).sum() / whole for i in range(3)] + [0]
    np.testing.assert_allclose(moments.spread(), expected)


def test_the_map_puts_like_clusters_together() -> None:
    like = np.full((12, 12), 0.01)
    like[:6, :6] = like[6:, 6:] = 0.5
    np.fill_diagonal(like, 0)
    at = atlas.layout(like)
    assert at.shape == (12, 2) and at.min() == 0 and at.max() == 1
    first, second = at[:6, 0], at[6:, 0]
    assert first.max() < second.min() or second.max() < first.min()
    assert atlas.layout(np.zeros((1, 1))).shape == (1, 2)
    np.testing.assert_array_equal(at, atlas.layout(like))


def test_regions_are_those_of_one_cluster_after_the_other() -> None:
    from scipy import ndimage

    rng = np.random.default_rng(4)
    ids = np.kron(rng.integers(0, 9, (9, 12)), np.ones((3, 3), int))
    ids[rng.random(ids.shape) < 0.03] = 4
    margins = rng.random(ids.shape)
    found, i = atlas.regions(ids, margins), 0
    for cluster in range(9):
        parts, n = ndimage.label(ids == cluster)
        for part in range(1, n + 1):
            own = parts == part
            if own.sum() < atlas.SMALLEST:
                continue
            rows, columns = np.nonzero(own)
            box = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
            assert (found.cluster[i], found.area[i]) == (cluster, own.sum())
            assert found.margin[i] == pytest.approx(margins[own].mean())
            assert found.box[i].tolist() == box
            i += 1
    assert i == len(found.cluster)


def test_names_pass_on_by_shared_pixels() -> None:
    counts = np.zeros((2, 5))
    codes = np.array([[0, 0], [1, -3]])
    ids = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]])
    carry(codes, ids, counts, -3)
    np.testing.assert_allclose(counts[0] * 16, [1, 0, 0, 8, 0])
    np.testing.assert_allclose(counts[1] * 16, [3, 0, 0, 0, 4])


def test_parts_and_corrections_reach_name_predict_and_report(
    named_project: Project,  # noqa: F811
) -> None:
    project = named_project
    rows = read_index("data/index.csv")
    row = next(row for row in rows if (row.split, row.stem) == ("val", "000"))
    head = heads.load_head("data/head")[2]["fingerprint"]
    names = some_names(head, row.sha256)
    names = names._replace(corrections=names.corrections[:1])
    write_names("names.json", names)
    project.set("segment.names", "names.json")
    project.ok("name")
    result = project.run("predict", "photos/images", "--out", "out", "--names", "names.json")
    assert result.exit_code == 0, result.output
    with Segments("data/segments.h5") as maps:
        for one in rows:
            name = f"{one.split}/{one.stem}"
            found = np.asarray(Image.open(f"data/named/labels/{name}.png"))
            again = np.asarray(Image.open(f"out/labels/{name}.png"))
            np.testing.assert_array_equal(found, again)
            ids, seconds = maps.read("ours", one.id), maps.runner_up(one.id)[0]
            expected = named(ids, seconds, names.values, names.by_rival)
            if one == row:
                inside = region_pixels(names.corrections[0].cells, ids, 1)
                assert inside.any()
                expected[inside] = 1
            np.testing.assert_array_equal(found, expected)
    legend = np.asarray(Image.open("data/named/legend.png"))
    assert legend[12, 12].tolist() == [9, 8, 7]  # the colours of the file
    copy = read_names("data/named/names.json", head, K)
    assert copy.codes.tolist() == names.codes.tolist() and set(copy.photos) == {
        r.sha256 for r in rows
    }
    project.ok("report")
    page = Path("results/report/index.html").read_text()
    assert "Areas by name" in page and "down, far" in page and "by your names" in page
    data = page_data(Path("results/report/clusters.html").read_text())
    assert data["names"]["clusters"] == names.codes.tolist() and data["names"]["photos"] == []


def test_names_of_another_head_are_carried_over(named_project: Project) -> None:  # noqa: F811
    project = named_project
    head = heads.load_head("data/head")[2]["fingerprint"]
    rows = read_index("data/index.csv")
    names = some_names(head, rows[-1].sha256)
    write_names("names.json", names)
    project.set("segment.names", "names.json")
    project.ok("name")
    before = {p.name: np.asarray(Image.open(p)) for p in Path("data/named/labels/val").iterdir()}
    Path("data/named/names.json").rename("old.json")
    project.set("seed", 1)
    project.set("train.epochs", 1)
    project.ok("train", "segment")
    new = heads.load_head("data/head")[2]["fingerprint"]
    assert new != head
    project.fails("report", "run `eigenseg")  # the results are of the former head
    result = project.run("predict", "photos/images", "--out", "out", "--names", "old.json")
    assert result.exit_code == 1 and "data/named/names.json for this head" in result.output
    project.set("segment.names", "old.json")
    result = project.run("name")
    assert result.exit_code == 0, result.output
    assert f"old.json is of another head ({head})" in result.output
    assert "of 6 clusters got names by the pixels of 9 photos" in result.output
    found = read_names("data/named/names.json", new, K)
    assert [one.cluster for one in found.corrections] == [None, None]
    assert all((one.cells == other.cells).all() for one, other in
               zip(found.corrections, names.corrections, strict=True))  # fmt: skip
    agree = [
        (np.asarray(Image.open(f"data/named/labels/val/{name}")) == labels).mean()
        for name, labels in before.items()
    ]
    assert np.mean(agree) > 0.6  # six clusters of noise are not those of before
    result = project.run("predict", "photos/images", "--out", "out", "--names",
                         "data/named/names.json")  # fmt: skip
    assert result.exit_code == 0, result.output
    value = json.loads(Path("old.json").read_text())
    Path("old.json").write_text(json.dumps({**value, "photos": []}))
    project.fails("name", "or share photos with it", "old.json")


def test_old_files_of_the_same_head_are_read(named_project: Project) -> None:  # noqa: F811
    write_old()
    found = read_any_names("names.json")
    assert found.colours is None and not found.splits and not found.corrections
    assert found.values.tolist() == [1, 0, 255, 0, 255, 255] and found.codes[5] == IGNORED


def test_a_simulated_person_names_by_what_covers_most_of_the_examples() -> None:
    parts = np.repeat([[0, 0, 4, 8]], 6, axis=0)  # clusters 0, 1, 2 of four parts each
    labels = np.array([[0, 0, 1, 255]] * 4 + [[1, 1, 1, 255]] * 2)
    photo = naming.Photo("a", "a", "train", parts, labels)
    whole = {0: [0, 0, 0, 6, 2], 1: [0, 0, 2, 6, 3], 2: [0, 0, 3, 6, 4]}
    entries = [{"id": i, "sample": [box], "parts": [], "share": 0.3} for i, box in whole.items()]
    data = {"head": "a", "k": 3, "split": 4, "clusters": entries}
    shown = naming.Shown(data, [photo], ["sky", "car"])
    assert naming.by_examples(shown, ("sample",)).tolist() == [0, 1, -1]
    assert shown.counts("train")[[0, 4, 8]].tolist() == [[8, 4], [0, 6], [0, 0]]
    names = naming.as_names(shown, "train", 1)
    assert names.codes.tolist() == [0, 1, -1] and not names.corrections  # nothing to correct
    wrong = photo._replace(labels=np.where(labels == 0, 1, labels))
    (one,) = naming.as_names(shown._replace(photos=[photo, wrong]), "train", 2).corrections
    assert one.cells.sum() == 12 and (one.cluster, one.code) == (0, 1)


def test_keys_are_the_fewest() -> None:
    names = ["sky", "sky", "road", "sky", "roadside", "ro", "road"]
    # s-k-y Enter; Enter; r-o-a-d Enter; s Enter; all and Enter; r-o Shift Enter; r Enter
    assert naming.keys_of(names) == [4, 1, 5, 2, 9, 4, 2]
    assert naming.reached(np.array([0.5, 0.3, 0.2]), 0.8) == 2
