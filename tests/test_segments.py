"""HDF5 files made from parts, label maps, and the segment stage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zarr

from cache import heads
from cache.features import Features
from cache.index import read_index, write_index
from cache.segments import FORMAT, PREDICTORS, ImageMaps, Segments, write_maps
from cache.store import parts
from cache.store.errors import InputError
from pipeline.geometry import Geometry, plan
from pipeline.head.head import Head
from pipeline.head.kmeans import fit, scores
from pipeline.maps.merging import merge
from pipeline.segmenter import Segmenter
from tests.conftest import Project

CLUSTERS = {"ours": 300, "ours_kmeans": 256, "kmeans": 4}


def write(folder: Path, name: str, **arrays: np.ndarray) -> None:
    with parts.write_part(folder, name) as file:
        for key, array in arrays.items():
            parts.dataset(file, key, array)


def flip_byte(path: Path, stored: str) -> None:
    """Flip one bit in the first chunk of a dataset."""
    with h5py.File(path, "r") as file:
        position = file[stored].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_parts_become_one_file(tmp_path: Path) -> None:
    big = np.arange(500_000, dtype=np.int32)  # several chunks
    for name, array in (("a", big), ("b", big[::-1])):
        with parts.write_part(tmp_path, name) as file:
            parts.dataset(file.create_group(f"shared/{name}"), "values", array)
            parts.dataset(file.create_group(f"own-{name}"), "empty", array[:0])
    manifest = {"images": list(range(100_000))}  # longer than some attributes may be (64 KiB)
    parts.assemble(tmp_path, ["a", "b"], tmp_path / "deep" / "out.h5", manifest)
    file, found = parts.open_complete(tmp_path / "deep" / "out.h5", "graph")
    with file:
        assert found == manifest
        np.testing.assert_array_equal(parts.read(file["shared/a/values"]), big)
        np.testing.assert_array_equal(parts.read(file["shared/b/values"], 5, 9), big[::-1][5:9])
        assert parts.read(file["own-b/empty"]).shape == (0,)


def test_part_that_fails_midway_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), parts.write_part(tmp_path, "a") as file:
        parts.dataset(file, "x", np.ones(5))
        raise KeyboardInterrupt
    assert not parts.finished(tmp_path, "a")
    with pytest.raises(InputError, match=r"lacks the parts \['a'\]: run the stage again"):
        parts.assemble(tmp_path, ["a"], tmp_path / "out.h5", {})
    write(tmp_path, "a", x=np.ones(5))
    assert parts.finished(tmp_path, "a")


@pytest.mark.parametrize("damage", ["truncate", "no mark", "no HDF5", "flip"])
def test_damaged_part_is_deleted_and_done_again(tmp_path: Path, damage: str) -> None:
    write(tmp_path, "a", x=np.arange(1000.0))
    path = tmp_path / "part-a.h5"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "no HDF5":
        path.write_bytes(b"nothing")
    elif damage == "flip":
        flip_byte(path, "x")
    else:
        with h5py.File(path, "a") as file:
            del file.attrs["complete"]
    assert not parts.finished(tmp_path, "a")
    assert not path.exists()


def test_file_that_is_missing_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "graph.h5"
    with pytest.raises(InputError, match=r"graph\.h5 is missing: run `eigenseg graph`"):
        parts.open_complete(path, "graph")
    with h5py.File(path, "w"):
        pass
    way_out = r"delete it and run `eigenseg graph` \(or `dvc repro graph`\) again"
    with pytest.raises(InputError, match=rf"graph\.h5 has no whole manifest .*: {way_out}"):
        parts.open_complete(path, "graph")
    write(tmp_path, "a", x=np.arange(1000.0))
    parts.assemble(tmp_path, ["a"], path, {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=rf"graph\.h5 is no whole HDF5 file .*: {way_out}"):
        parts.open_complete(path, "graph")


def test_no_flipped_bit_gives_other_values(tmp_path: Path) -> None:
    expected = {"values": np.arange(40.0), "labels": np.arange(40, dtype=np.uint8).repeat(9)}
    with parts.write_part(tmp_path, "a") as file:
        for name, array in expected.items():
            parts.dataset(file.create_group(f"group/{name}"), "x", array, compress=name == "labels")
    manifest = {"images": list(range(30))}
    parts.assemble(tmp_path, ["a"], tmp_path / "out.h5", manifest)
    whole = (tmp_path / "out.h5").read_bytes()
    found = 0
    for position in range(0, len(whole), 5):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        path = tmp_path / "flipped.h5"
        path.write_bytes(content)
        try:
            file, facts = parts.open_complete(path, "graph")
            with file:
                assert facts == manifest
                for name, array in expected.items():
                    np.testing.assert_array_equal(parts.read(file[f"group/{name}/x"]), array)
        except (InputError, KeyError):
            found += 1
    assert found > 100  # the others hit unused space


def image_maps(image: int) -> ImageMaps:
    rng = np.random.default_rng(image)
    shape = (31 + image, 17)
    labels = {name: rng.integers(0, k, shape).astype(np.uint16) for name, k in CLUSTERS.items()}
    functions = rng.normal(size=(6, 3, 2)).astype(np.float32)
    seconds = rng.integers(0, CLUSTERS["ours"], (3, 2))
    return ImageMaps(image, {"full": labels}, functions, seconds, rng.uniform(size=(3, 2)))


def write_segments(folder: Path, **manifest: object) -> Path:
    for name, images in (("0", (0, 3)), ("1", (12,))):
        write_maps(folder, name, (image_maps(image) for image in images), CLUSTERS)
    contents = {str(image): f"sha {image}" for image in (0, 3, 12)}
    facts = {"format": FORMAT, "clusters": CLUSTERS, "images": contents}
    facts |= {"variants": ["full"], "protocols": {}, **manifest}
    parts.assemble(folder, ["0", "1"], folder / "segments.h5", facts)
    return folder / "segments.h5"


def test_segments_round_trip(tmp_path: Path) -> None:
    with Segments(write_segments(tmp_path)) as store:
        assert store.images == [0, 3, 12]
        assert store.by_content == {"sha 0": 0, "sha 3": 3, "sha 12": 12}
        assert store.clusters == CLUSTERS
        for image in store.images:
            expected = image_maps(image)
            for name in CLUSTERS:
                found = store.read(name, image)
                assert found.dtype == np.uint16
                np.testing.assert_array_equal(found, expected.labels["full"][name])
            np.testing.assert_array_equal(
                store.eigenfunctions(image), expected.eigenfunctions.astype(np.float16)
            )
            seconds, margins = store.runner_up(image)
            np.testing.assert_array_equal(seconds, expected.seconds)
            np.testing.assert_array_equal(margins, expected.margins.astype(np.float16))
        with pytest.raises(
            InputError, match=r"holds no full/ours/00000005, only .* run `eigenseg segment`"
        ):
            store.read("ours", 5)
    with h5py.File(tmp_path / "segments.h5") as file:
        assert [file[f"full/{name}/00000003"].dtype for name in CLUSTERS] == ["u2", "u1", "u1"]


@pytest.mark.parametrize("name", [*(f"full/{name}" for name in CLUSTERS), "eigenfunctions"])
def test_flipped_bit_is_found_and_named(tmp_path: Path, name: str) -> None:
    path = write_segments(tmp_path)
    flip_byte(path, f"{name}/00000012")
    match = rf"segments\.h5: the dataset /{name}/00000012 is damaged .*: delete the file and run"
    with Segments(path) as store:
        store.read("ours", 3)
        with pytest.raises(InputError, match=match):
            store.eigenfunctions(12) if name == "eigenfunctions" else store.read(
                Path(name).name, 12
            )


def test_segments_of_another_format(tmp_path: Path) -> None:
    path = write_segments(tmp_path, format=7)
    with pytest.raises(InputError, match=r"segments\.h5 has format 7, this version reads 4: run"):
        Segments(path)


def test_scores_of_one_tile() -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "channels": [8, 8], "clusters": 5, "width": None, "depth": 1, "head_dim": 8,
        "mlp_hidden": 16, "level_norm": False,
    }  # fmt: skip
    head, rng = Head(**shape).eval(), np.random.default_rng(0)
    choices: dict[str, Any] = {"spherical": True, "whiten": None, "seed": 0}
    points = [rng.normal(size=(60, width)).astype(np.float32) for width in (head.width, 8)]
    models = {"ours_kmeans": fit(points[0], 5, **choices), "kmeans": fit(points[1], 7, **choices)}
    manifest = {"head": {**shape, "levels": ["a", "b"]}, "kmeans": {"level": "b"}, "context": []}
    fitted = {name: model._asdict() for name, model in models.items()}
    tokens = rng.normal(size=(12, 16)).astype(np.float16)
    with torch.no_grad():
        features, logits = head(torch.from_numpy(tokens).float(), [12])
    at = logits.reshape(3, 4, 5).permute(2, 0, 1)
    one = plan(Geometry(8, 24), 24, 32)
    for temperature in (0.3, None):
        cpu = torch.device("cpu")
        segmenter = Segmenter(manifest, head.state_dict(), fitted, cpu, temperature=temperature)
        assert segmenter.used == ("a", "b")
        found = segmenter.scores([{"a": tokens[:, :8], "b": tokens[:, 8:]}], one)
        expected = at if temperature is None else torch.softmax(at / temperature, dim=0)
        torch.testing.assert_close(found["ours"][0], expected)
        torch.testing.assert_close(found["eigenfunctions"][0], at)
    for name, values in (("ours_kmeans", features.numpy()), ("kmeans", tokens[:, 8:])):
        nearness = scores(models[name], values).reshape(3, 4, -1).transpose(2, 0, 1)
        np.testing.assert_allclose(found[name][0].numpy(), nearness, atol=1e-6)
    with pytest.raises(ValueError, match="zip"):
        segmenter.scores([], one)


@pytest.fixture
def trained(project: Project) -> Project:
    """A project whose stages up to train have run."""
    project.made("train")
    return project


def naive_labels(image: int, height: int, width: int, temperature: float | None) -> np.ndarray:
    """The label map of "ours" by the shortest way, for images of one tile."""
    features = Features.open("data/features.zarr").beside("data/context.zarr")
    state, _, manifest = heads.load_head("data/head")
    choices = dict(manifest["head"])
    levels = choices.pop("levels")
    head = Head(**choices).eval()
    head.load_state_dict(state)
    (tile,) = np.flatnonzero(features.tiles["image"] == image).tolist()
    row = features.tiles[tile]
    tokens = np.concatenate([features.tokens(level, tile) for level in levels], axis=1)
    with torch.no_grad():
        logits = head(torch.from_numpy(tokens).float(), [len(tokens)])[1]
    scores = logits if temperature is None else torch.softmax(logits / temperature, dim=1)
    maps = scores.T.reshape(1, -1, row["grid_h"], row["grid_w"])
    return F.interpolate(maps, (height, width), mode="bilinear")[0].argmax(dim=0).numpy()


PAPER = {
    "train.start": "random",
    "head.levels": ["first", "middle", "last"],
    "head.width": 64,
    "head.level_norm": True,
    "head.orthogonal": True,
    "segment.temperature": 0.3,
}


@pytest.mark.parametrize("choices", [{}, PAPER], ids=["default", "paper"])
def test_stage_equals_the_short_way_and_repeats(trained: Project, choices: dict[str, Any]) -> None:
    temperature = choices.get("segment.temperature")
    for key, value in choices.items():
        trained.set(key, value)
    trained.ok("train", "segment")
    with Segments("data/segments.h5") as store:
        assert store.images == list(range(9))  # both splits
        for image in (0, 8):
            found = store.read("ours", image)
            assert (
                found != naive_labels(image, 96, 128, temperature)
            ).mean() < 1e-3  # ties of float32
            assert store.eigenfunctions(image).shape == (6, 6, 8)
    first = Path("data/segments.h5").read_bytes()
    trained.ok("segment")
    assert Path("data/segments.h5").read_bytes() == first
    assert not list(Path("data/.work").glob("segments*"))


def test_clusters_are_merged_without_training_again(trained: Project) -> None:
    head = Path("data/head/head.safetensors").read_bytes()
    trained.set("segment.merge_to", 3)
    trained.ok("segment")
    assert Path("data/head/head.safetensors").read_bytes() == head
    _, centres, _ = heads.load_head("data/head")
    segment_of = merge(centres["ours"]["centroids"], 3)
    with Segments("data/segments.h5") as store:
        assert store.clusters == dict.fromkeys(PREDICTORS, 3)
        whole = naive_labels(8, 96, 128, None)
        merged = store.read("ours", 8)
    # Where four patches are of one segment, so is all between them; borders may move.
    assert (merged == segment_of[whole]).mean() > 0.9
    assert merged.max() < 3
    trained.set("segment.merge_to", 7)
    trained.fails("extract", "segment.merge_to (7) must not exceed clusters (6): lower it")


def test_centres_of_the_heads_own_clusters_are_means_of_their_features(trained: Project) -> None:
    state, centres, manifest = heads.load_head("data/head")
    segmenter = Segmenter(manifest, state, centres, torch.device("cpu"))
    cache = Features.open("data/features.zarr").beside("data/context.zarr")
    tiles = cache.tiles_of("train")
    tokens = torch.from_numpy(cache.batch(manifest["head"]["levels"], tiles)).float()
    with torch.no_grad():
        features, logits = segmenter.head(tokens, cache.sizes(tiles))
    for cluster, centre in enumerate(centres["ours"]["centroids"]):
        own = features[logits.argmax(dim=1) == cluster].numpy()
        expected = own.mean(axis=0) if len(own) else segmenter.head.last.weight[cluster].detach()
        np.testing.assert_allclose(centre, expected, atol=2e-3)


def test_stage_with_windows_covers_the_image(project: Project) -> None:
    project.set("extract.train.window", 64)
    project.set("extract.train.stride", 32)
    project.set("train.epochs", 1)
    project.ok("prepare", "extract", "context", "graph", "train", "segment")
    assert len(Features.open("data/features.zarr").tiles) > 9
    with Segments("data/segments.h5") as store:
        assert store.read("kmeans", 4).shape == (96, 128)
        assert store.eigenfunctions(4).shape == (6, 6, 8)


def test_killed_stage_goes_on_with_the_same_result(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.ok("segment")
    expected = Path("data/segments.h5").read_bytes()
    Path("data/segments.h5").unlink()

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stages.segment.parts.assemble", kill)
        assert trained.run("segment").exit_code != 0
    (work,) = (path for path in Path("data/.work").glob("segments*") if path.is_dir())
    last = work / "part-00000008.h5"
    last.write_bytes(last.read_bytes()[:100])
    (work / "part-00000000.h5.partial").write_bytes(b"half")
    result = trained.run("segment")
    assert "resumed: 1 of 2 parts were finished" in result.output
    assert Path("data/segments.h5").read_bytes() == expected


def test_parts_of_another_head_are_not_reused(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same parameters may give other weights, on another machine for instance."""

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stages.segment.parts.assemble", kill)
        assert trained.run("segment").exit_code != 0
    state, kmeans, manifest = heads.load_head("data/head")
    state["norm.bias"] = state["norm.bias"] + 1
    heads.save_head("data/head", state, kmeans, manifest)
    result = trained.run("segment")
    assert result.exit_code == 0
    assert "resumed" not in result.output
    with Segments("data/segments.h5") as store:
        assert (store.read("ours", 0) != naive_labels(0, 96, 128, None)).mean() < 1e-3


def test_features_that_are_not_finite_end_the_stage(trained: Project) -> None:
    features = Features.open("data/features.zarr")
    name, start = features.array("last"), int(features.tiles["start"][4])
    stored = zarr.open_array("data/features.zarr", path=name, mode="r+")
    stored[start + 2, 1] = np.nan
    trained.fails("segment", f"{name} has NaN or infinite values", "at tile 4: delete data/feat")


def test_stage_names_what_does_not_fit(trained: Project) -> None:
    rows = read_index("data/index.csv")
    write_index("data/index.csv", rows[:-1])
    trained.fails("segment", "must hold the same images in the same order", "among 8")
    write_index("data/index.csv", rows)

    trained.set("extract.train.short_side", 64)
    trained.ok("extract", "context")
    trained.fails("segment", "was trained on another feature cache", "run `eigenseg train`")
    shutil.rmtree("data/head")
    trained.fails("segment", "the head data/head is missing: run `eigenseg train`")
