"""The atlas of clusters and the names that come from it: numerics, files, and what uses them."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import stages.showing.atlas
from cache import heads, runs
from cache.index import read_index
from cache.names import read_names
from cache.segments import FORMAT, PREDICTORS, ImageMaps, Segments, write_maps
from cache.store import parts
from cache.store.errors import InputError
from pipeline.maps import atlas
from pipeline.selection import most_different, most_typical
from stages.showing.atlas import make_atlas
from tests.conftest import Project, make_dataset, metrics_of, run_stages

STAGES = ("prepare", "extract", "context", "graph", "train", "segment", "eval", "report")


def page_data(page: str) -> dict[str, Any]:
    """What the page holds, as its program reads it."""
    text = page.split('<script id="data" type="application/json">')[1].split("</script>")[0]
    return json.loads(text)


def decode(runs: bytes) -> np.ndarray:
    """Cell by cell, as a reader without numpy would."""
    cells: list[int] = []
    for low, high, length in zip(runs[::3], runs[1::3], runs[2::3], strict=True):
        cells += [low + 256 * high] * length
    return np.array(cells)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 50)])
@pytest.mark.parametrize("k", [1, 2, 700])
def test_runs_give_the_map_back(shape: tuple[int, int], k: int) -> None:
    ids = np.random.default_rng(k).integers(0, k, shape)
    np.testing.assert_array_equal(decode(runs.pack(ids)), ids.ravel())
    whole = np.full((40, 60), 65535)  # longer than a run may be
    np.testing.assert_array_equal(decode(runs.pack(whole)), whole.ravel())


def test_regions_of_a_drawn_map() -> None:
    ids = np.zeros((6, 8), int)
    ids[1:3, 1:4] = 5  # 6 cells
    ids[4:6, 5:8] = 5  # 6 cells, apart
    ids[0, 7] = 3  # a speck
    margins = np.where(ids == 5, np.arange(8), 1.0)
    found = atlas.regions(ids, margins)
    assert found.cluster.tolist() == [0, 5, 5] and found.area.tolist() == [35, 6, 6]
    assert found.box.tolist() == [[0, 0, 6, 8], [1, 1, 3, 4], [4, 5, 6, 8]]
    assert found.margin.tolist() == [1.0, 2.0, 6.0]


def test_examples_are_of_different_photos_and_never_both() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 40):
        photo, area = rng.integers(0, 9, n), rng.integers(4, 50, n)
        margin = rng.uniform(size=n)
        typical, unusual = atlas.examples(photo, area, margin, 4)
        both = [*typical, *unusual]
        assert len(both) == len(set(photo[both].tolist())) and 1 <= len(typical) <= 4
        assert all(area[i] >= np.median(area) for i in both)
        if unusual:
            assert min(margin[typical]) >= max(margin[unusual])
            assert margin[unusual].tolist() == sorted(margin[unusual])
    assert atlas.examples(photo[:0], area[:0], margin[:0], 4) == ([], [])


def test_likeness_counts_who_comes_second() -> None:
    first, second = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([1, 1, 1, 2, 0, 2, 3])
    pairs = np.zeros((4, 4), int)
    np.add.at(pairs, (first, second), 1)
    found = atlas.likeness(pairs)
    np.testing.assert_allclose(found, found.T)
    assert found[0, 1] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found[2, 3] == pytest.approx(1 / 2) and not found.diagonal().any()


def test_together_is_the_jaccard_index_of_photos() -> None:
    areas = np.random.default_rng(1).integers(0, 2, (20, 5))
    found = atlas.together(areas)
    a, b = (set(np.flatnonzero(areas[:, i]).tolist()) for i in (1, 3))
    assert found[1, 3] == pytest.approx(len(a & b) / len(a | b)) and not found.diagonal().any()


def test_the_order_puts_like_beside_like_and_the_large_first() -> None:
    k = 24
    like = np.full((k, k), 0.01)
    for start in range(0, k, 6):  # four groups of six, mixed up by their ids
        group = np.arange(start, start + 6) * 7 % k
        like[np.ix_(group, group)] = 0.9
    share = np.random.default_rng(2).uniform(0.1, 1, k)
    share[5] = 0
    order = atlas.naming_order(share, like)
    assert sorted(order.tolist()) == [i for i in range(k) if i != 5]
    jumps = sum(like[a, b] < 0.5 for a, b in pairwise(order))
    assert jumps == 3
    places = [i for i, pair in enumerate(pairwise(order)) if like[pair] < 0.5]
    groups = np.split(order, np.array(places) + 1)
    assert [share[g].mean() for g in groups] == sorted([share[g].mean() for g in groups])[::-1]
    assert all(share[g].tolist() == sorted(share[g])[::-1] for g in groups)


def test_where_photos_are_left_out_every_cluster_is_still_shown() -> None:
    areas = np.zeros((500, 60), int)
    areas[:, 0] = 9
    areas[np.arange(60) * 3 + 301, np.arange(60)] = 99
    shown = atlas.photos_to_show(areas, 100)
    assert len(shown) == 100 and (np.diff(shown) > 0).all()
    assert areas[shown].any(axis=0).all()
    assert atlas.photos_to_show(areas, 500).tolist() == list(range(500))


def test_chosen_images_are_typical_or_different() -> None:
    areas = np.full((12, 6), 1)
    areas[np.arange(12), np.arange(12) % 6] = 200
    areas[7] = 30  # the mean
    assert most_typical(areas, 1).tolist() == [7]
    different = most_different(areas, 12)
    assert sorted(different.tolist()) == list(range(12))
    assert different[0] == 7  # shows all six
    few = np.zeros((5, 4), int)
    few[[0, 1, 2, 3, 4], [0, 0, 1, 2, 3]] = 10
    assert {int(few[i].argmax()) for i in most_different(few, 4)} == {0, 1, 2, 3}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:

    folder = tmp_path_factory.mktemp("named")
    make_dataset(folder / "photos", {"train": 6, "val": 3})
    (folder / "photos/classes.txt").write_text("sky\n<b>meadow</b>\nroad & rail\n'box\"\n")
    return run_stages(folder, weights, *STAGES)


@pytest.fixture
def named(
    finished: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """A copy of a project that has run up to the report, with a file of names."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    write_names()
    return Project(tmp_path, weights)


CODES = [1, 0, -1, 0, -2, -3]
REGION = {
    "photo": "val/000", "sha256": "a", "height": 3, "width": 4, "runs": [0, 2], "cluster": 1,
    "code": 0,
}  # fmt: skip


def write_names(**changes: Any) -> None:
    head = heads.load_head("data/head")[2]["fingerprint"]
    value = {
        "format": 1,
        "head": head,
        "predictor": "ours",
        "classes": ["up", "down, far"],
        "clusters": CODES,
    }
    Path("names.json").write_text(json.dumps({**value, **changes}))


def expected() -> dict[str, np.ndarray]:
    values = np.array([1, 0, 255, 0, 255, 255])
    with Segments("data/segments.h5") as maps:
        rows = read_index("data/index.csv")
        return {f"{row.split}/{row.stem}": values[maps.read("ours", row.id)] for row in rows}


def test_the_page_shows_every_cluster_and_photo_and_refers_to_nothing(finished: Path) -> None:
    page = (finished / "results/report/clusters.html").read_text()
    data = page_data(page)
    with Segments(finished / "data/segments.h5") as maps:
        ids = {i: maps.read("ours", i) for i in maps.images}
    used = np.unique(np.concatenate([values.ravel() for values in ids.values()])).tolist()
    assert sorted(one["id"] for one in data["clusters"]) == used
    assert sum(one["share"] for one in data["clusters"]) == pytest.approx(1, abs=1e-4)
    assert len(data["photos"]) == data["all"] == len(ids)
    for one in data["clusters"]:
        pixels = sum((values == one["id"]).sum() for values in ids.values())
        whole = sum(values.size for values in ids.values())
        assert one["share"] == pytest.approx(pixels / whole, abs=0.02)
        parts = [example for part in one["parts"] for example in part["sample"]]
        for photo, top, left, bottom, right in one["typical"] + one["sample"] + parts:
            shown = data["photos"][photo]
            assert 0 <= top < bottom <= shown["height"] and 0 <= left < right <= shown["width"]
    assert "http" not in page.replace("http-equiv", "") and "<b>meadow" not in page


def test_a_photo_is_read_when_its_piece_of_the_page_is(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    entry, names = stages.showing.atlas.photo_entry, []

    def noted(*given: Any) -> dict[str, Any]:
        names.append(given[1].stem)
        return entry(*given)

    monkeypatch.setattr(stages.showing.atlas, "photo_entry", noted)
    with Segments("data/segments.h5") as maps:
        rows = maps.stored(read_index("data/index.csv"))
        page, read = b"", [0]
        for piece in make_atlas("", rows, maps, None):
            page += piece
            read.append(len(names))
    assert read[1] == 0 and read[-1] == len(rows) == 9
    assert all(after - before <= 1 for before, after in pairwise(read))
    shown = [one["name"].split("/")[1] for one in page_data(page.decode())["photos"]]
    assert shown == names == [row.stem for row in rows]


def test_a_large_page_stays_below_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """51 clusters and 110 photos of noise, which no JPEG makes small, at a tenth of all bounds."""
    for name in ("PHOTOS", "CELLS", "BYTES"):
        monkeypatch.setattr(stages.showing.atlas, name, getattr(stages.showing.atlas, name) // 10)
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    rng = np.random.default_rng(0)
    count, k = 110, 51
    for i in range(40):
        noise = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((160, 120)).save(f"photos/{i:04d}.jpg")
    for i in range(40, count):
        shutil.copy(f"photos/{i % 40:04d}.jpg", f"photos/{i:04d}.jpg")
    project_index(count)
    tiles = np.kron(rng.integers(0, k, (count, 10, 12)), np.ones((1, 12, 14), int))[:, :, :160]
    maps = (
        ImageMaps(i, {"full": dict.fromkeys(PREDICTORS, tiles[i])}, np.zeros((1, 2, 2)),
                  rng.integers(0, k, (30, 40)), rng.uniform(size=(30, 40)))
        for i in range(count)
    )  # fmt: skip
    clusters = dict.fromkeys(PREDICTORS, k)
    write_maps(".", "all", maps, clusters)
    manifest = {
        "format": FORMAT,
        "head": "a1",
        "clusters": clusters,
        "labelled": None,
        "protocols": {"full": {"patch": 8, "short_side": 64}},
        "variants": ["full"],
        "images": list(range(count)),
    }
    parts.assemble(".", ["all"], "segments.h5", manifest)
    with Segments("segments.h5") as store:
        pieces = list(make_atlas("large", read_index("index.csv"), store, None))
    page = b"".join(pieces)
    assert len(page) < 20_000_000 / 10 and max(map(len, pieces)) < len(page) / 10
    data = page_data(page.decode())
    assert (len(data["photos"]), data["all"], len(data["clusters"])) == (100, count, k)
    assert all(one["typical"] and one["sample"] and one["parts"] for one in data["clusters"])


def project_index(count: int) -> None:
    from cache.index import ImageRow, write_index

    rows = [
        ImageRow(i, "all", f"{i:04d}", f"photos/{i:04d}.jpg", 240, 320, "") for i in range(count)
    ]
    write_index("index.csv", rows)


def test_predict_takes_the_names(named: Project) -> None:
    result = named.run("predict", "photos/images", "--out", "out", "--names", "names.json")
    assert result.exit_code == 0 and "9 of 9 images, 2 names of ours" in result.output
    for name, labels in expected().items():
        found = np.asarray(Image.open(f"out/labels/{name}.png"))
        np.testing.assert_array_equal(found, labels)
        photo = Image.open(f"photos/images/{name}.jpg")
        picture = Image.open(f"out/overlays/{name}.jpg")
        assert picture.size == photo.size
    assert Path("out/classes.txt").read_text() == "up\ndown, far\n"
    with open("out/areas.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for row in table:
        labels = expected()[row["photo"]]
        assert int(row["up"]) == (labels == 0).sum()
        assert int(row["down, far"]) == (labels == 1).sum()
        assert int(row["no class"]) == (labels == 255).sum()
    assert [row["photo"] for row in table] == sorted(expected())


def test_the_stage_writes_the_same_as_predict(named: Project) -> None:
    named.ok("name")
    assert not Path("data/named/labels").exists()
    named.set("segment.names", "names.json")
    named.ok("name")
    named.run("predict", "photos/images", "--out", "out", "--names", "names.json")
    for name, labels in expected().items():
        found = np.asarray(Image.open(f"data/named/labels/{name}.png"))
        np.testing.assert_array_equal(found, labels)
    for name in ("areas.csv", "classes.txt", "legend.png"):
        assert Path("data/named", name).read_bytes() == Path("out", name).read_bytes()
    assert not list(Path("data/.work").iterdir())
    named.set("segment.names", None)
    named.ok("name")
    assert not Path("data/named/labels").exists()


def test_an_export_is_a_data_set_that_prepare_takes(named: Project) -> None:
    arguments = ("photos/images/val", "--out", "out", "--names", "names.json")
    assert named.run("predict", *arguments, "--export", "set").exit_code == 0
    named.set("datasets.set", {"root": "set", "train": "train", "eval": "train"})
    named.set("dataset", "set")
    named.ok("prepare")
    assert [row.stem for row in read_index("data/index.csv")] == ["000", "001", "002"]
    for name in ("000", "001", "002"):
        source, copy = (Path(p, f"{name}.jpg") for p in ("photos/images/val", "set/images/train"))
        assert source.read_bytes() == copy.read_bytes()
        found = np.asarray(Image.open(f"set/labels/train/{name}.png"))
        assert set(np.unique(found)) <= {0, 1, 255}
    named.set("dataset", "tiny")
    result = named.run("predict", *arguments[:3], "--mapping", "none", "--export", "other")
    assert result.exit_code == 1 and "a data set needs classes" in result.output


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"head": "0123"}, r"of this head \(.*\).* found names for those of 0123"),
        ({"predictor": "kmeans"}, "clusters of ours, found those of kmeans"),
        ({"format": 9}, "is no file of names of format 1 or 2"),
        ({"classes": []}, "must hold 1 to 255 class names"),
        ({"classes": ["a", "a"]}, "each once and on one line"),
        ({"classes": ["a", "b\nc"]}, "each once and on one line"),
        ({"clusters": CODES[1:]}, "each of 6 clusters a code, found 5"),
        ({"clusters": [*CODES[1:], 2]}, r"codes must be integers in -3\.\.1, found 2"),
        ({"clusters": [*CODES[1:], "up"]}, r"clusters must be integers in -3\.\.1"),
        ({"colours": [[0, 0, 256], [1, 2, 3]]}, r"colours must be 2 triples in 0\.\.255"),
        ({"splits": [{"cluster": 1, "parts": "01", "codes": [0, 1]}]}, "of one of 6 clusters"),
        ({"splits": [{"cluster": 1, "parts": "000003", "codes": [0, 1]}]}, "has a part 3"),
        ({"corrections": [{**REGION, "runs": [9, 5]}]}, "leaves its photo: 9 \\+ 5 of 12 cells"),
        ({"corrections": [{**REGION, "code": 7}]}, r"in -3\.\.1, found 7"),
        ({"photos": [{"sha256": "a", "height": 2, "width": 2, "runs": "AQAB"}]}, "as the atlas"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    named: Project, changes: dict[str, Any], text: str
) -> None:
    write_names(**changes)
    head = heads.load_head("data/head")[2]["fingerprint"]
    with pytest.raises(InputError, match=text):
        read_names("names.json", head, 6)
    named.set("segment.names", "names.json")
    result = named.run("predict", "photos/images", "--out", "out", "--names", "names.json")
    for output in (named.fails("name"), result.output):
        assert "names.json" in output and "clusters.html" in output
    assert result.exit_code == 1 and not Path("out").exists() and not Path("data/named").exists()


def test_names_are_of_ours_alone(named: Project) -> None:
    arguments = ("photos/images", "--out", "out", "--names", "names.json")
    result = named.run("predict", *arguments, "--predictor", "kmeans")
    assert result.exit_code == 1
    assert "names clusters of ours, found predictor kmeans: omit one" in result.output


def test_few_labelled_images_fit_the_mapping(named: Project) -> None:
    before = metrics_of()
    named.set("eval.labelled", 2)
    named.ok("eval", "report")
    after = metrics_of()
    for name in PREDICTORS:
        found = after[name]["majority_count"]
        assert list(found) == ["oracle", "typical", "different", "random"]
        assert found["oracle"] == before[name]["majority_count"]["oracle"]
    (found,) = json.loads(Path("results/counts.json").read_text())["datasets"].values()
    counts = found["counts"]["full"]["ours"]
    pixels = {sample: int(np.sum(table)) for sample, table in counts.items()}
    assert pixels == {"val": 3 * 96 * 128} | dict.fromkeys(
        ["typical", "different", *(f"random {i}" for i in range(5))], 2 * 96 * 128
    )
    assert "the 2 most different images" in Path("results/mapping.json").read_text()
    named.set("eval.labelled", 10)  # more than there are: all of them
    named.ok("eval")
    again = metrics_of()
    assert again == before
