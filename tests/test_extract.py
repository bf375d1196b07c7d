"""Extraction: against the bare model, resumable to the byte, and damage is found and named."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from cache.features import Features
from stages import extract
from stages.running.ahead import ahead
from tests.conftest import Project, kill_when, tree_bytes

CACHE = Path("data/features.zarr")


def bare_model(weights: Path) -> torch.nn.Module:
    model = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True)
    model.load_state_dict(load_file(weights))
    return model.eval()


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 2e-3), ("bfloat16", 2e-2)]
)  # bfloat16 has 8 bits
def test_tokens_equal_the_bare_model(
    project: Project, weights: Path, precision: str, tolerance: float
) -> None:
    project.set("extract.precision", precision)
    project.set("extract.blocks", ["first", 2, "last"])
    project.set("extract.keys", True)
    project.ok("prepare", "extract")
    features = Features.open(CACHE)
    model = bare_model(weights)
    depth = len(model.blocks)
    assert features.manifest["levels"]["last"] == f"block_{depth - 1:02d}"
    tile = int(features.tiles_of("val")[1])
    image = Image.open("photos/images/val/001.jpg").resize((128, 96), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)[None]
    mean, std = (torch.tensor(model.default_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_hook(lambda m, i, o: seen.append(o))
    model.blocks[-1].attn.qkv.register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad():
        last = model.forward_features((pixels - mean) / std)
    prefix = model.num_prefix_tokens
    width = last.shape[-1]
    expected = {
        "first": seen[0][0, prefix:],
        "last": last[0, prefix:],
        "keys": seen[1][0, prefix:, width : 2 * width],
    }
    for level, values in expected.items():
        found = torch.from_numpy(features.tokens(level, tile)).float()
        assert found.shape == (6 * 8, width)
        assert (found - values).abs().max() <= tolerance * values.abs().max()
    small = F.interpolate(pixels, size=(6, 8), mode="bilinear")[0].flatten(1).T.numpy()
    assert np.abs(features.rgb(tile) - small).max() < 1e-3


def test_sizes_and_windows_share_one_table(project: Project) -> None:
    for name, size in (("tall", (60, 200)), ("dot", (3, 2)), ("wide", (400, 50))):
        Image.effect_noise(size, 60).convert("RGB").save(f"photos/images/train/{name}.png")
    shutil.rmtree("photos/labels")
    project.set("extract.train.window", 64)
    project.set("extract.train.stride", 48)
    project.ok("prepare", "extract")
    features = Features.open(CACHE)
    for tile in range(len(features.tiles)):
        assert len(features.tokens("last", tile)) == features.size(tile) <= 16
    assert len(features.tiles_of("train")) > len(features.tiles_of("val")) >= 3 * 4


def test_killed_and_restarted_gives_the_same_bytes(project: Project) -> None:
    project.shards(48)
    project.ok("prepare", "extract")
    expected = tree_bytes(CACHE)
    shutil.rmtree(CACHE)
    kill_when("extract", "features.zarr-*/done/*.json", 2, "feature_writer.write_shard")
    assert not CACHE.exists()
    (work,) = Path("data/.work").glob("features.zarr-*[0-9a-f]")
    finished = {path.stem for path in (work / "done").glob("*.json")}
    assert 2 <= len(finished) < 9
    torn = work / "features.zarr/block_00/c" / min(finished) / "0"
    os.truncate(torn, torn.stat().st_size // 2)  # a shard that only looks finished
    (work / "features.zarr/block_00/c/8/0.partial").parent.mkdir(parents=True, exist_ok=True)
    (work / "features.zarr/block_00/c/8/0.partial").write_bytes(b"left by a kill")
    result = project.run("extract")
    assert result.exit_code == 0, result.output
    assert f"resumed: {len(finished) - 1} of 9 shards were finished" in result.output
    assert tree_bytes(CACHE) == expected
    assert not list(Path("data/.work").glob("features.zarr-*"))


def test_other_parameters_never_meet_old_shards(project: Project) -> None:
    project.made("extract")
    first = json.loads((CACHE / "manifest.json").read_text())["fingerprint"]
    project.set("extract.final_norm", ["first", "last"])
    project.ok("extract")
    second = json.loads((CACHE / "manifest.json").read_text())["fingerprint"]
    Image.new("RGB", (128, 96), "navy").save("photos/images/train/000.jpg")
    project.ok("prepare", "extract")
    third = json.loads((CACHE / "manifest.json").read_text())["fingerprint"]
    assert len({first, second, third}) == 3


def test_a_flipped_bit_and_a_truncated_shard_are_found(project: Project) -> None:
    project.made("context")
    shard = CACHE / "block_00/c/0/0"
    whole = bytearray(shard.read_bytes())
    whole[100] ^= 4
    shard.write_bytes(whole)
    project.set("graph.level", "first")
    project.fails("graph", "a shard of block_00 is damaged", "delete data/features.zarr")
    os.truncate(shard, 1000)
    project.fails("graph", "a shard of block_00 is damaged", "dvc repro extract")
    shard.unlink()
    project.fails("graph", "block_00 lacks the shard that holds tile 0")


def test_an_incomplete_cache_is_refused(project: Project) -> None:
    project.ok("prepare")
    project.fails("graph", "the feature cache data/features.zarr is missing", "eigenseg extract")
    project.ok("extract")
    (CACHE / "manifest.json").unlink()
    project.fails("graph", "is incomplete (no manifest)")


def test_nan_features_name_the_image(project: Project, weights: Path, tmp_path: Path) -> None:
    project.ok("prepare")
    state = load_file(weights)
    state["norm.weight"] = torch.full_like(state["norm.weight"], torch.nan)
    save_file(state, tmp_path / "nan.safetensors")
    project.set("backbones.tiny.weights", "nan.safetensors")
    project.fails("extract", "photos/images/train/000.jpg", "are NaN or beyond float16")


def test_bad_weights_are_explained(project: Project, weights: Path, tmp_path: Path) -> None:
    project.ok("prepare")
    project.set("backbones.tiny.weights", "absent.safetensors")
    project.fails("extract", "absent.safetensors does not exist", "backbones.<name>.weights")
    state = load_file(weights)
    state["blocks.0.attn.qkv.weight"] = state["blocks.0.attn.qkv.weight"][:8].clone()
    save_file(state, tmp_path / "cut.safetensors")
    project.set("backbones.tiny.weights", "cut.safetensors")
    project.fails("extract", "cut.safetensors does not fit test_vit", "qkv")
    Path("torn.safetensors").write_bytes(weights.read_bytes()[:5000])
    project.set("backbones.tiny.weights", "torn.safetensors")
    project.fails("extract", "torn.safetensors does not fit test_vit or is damaged")
    project.set("backbones.tiny.model", "vit_smal_patch14_dinov2")
    project.fails("extract", "has no model 'vit_smal_patch14_dinov2'; near it: vit_small_patch14")
    project.set("backbones.tiny.model", "resnet18")
    project.fails("extract", "resnet18")


class Command:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_a_checkpoint_never_runs_a_command(project: Project) -> None:
    project.ok("prepare")
    torch.save({"state_dict": Command()}, "evil.pth")
    project.set("backbones.tiny.weights", "evil.pth")
    project.fails("extract", "evil.pth does not fit test_vit or is damaged")
    assert not Path("executed").exists()


def test_a_hub_out_of_reach_is_explained(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect to the hub")

    project.ok("prepare")
    monkeypatch.setattr(timm, "create_model", unreachable)
    project.set("backbones.tiny.weights", None)
    project.fails("extract", "could not be fetched from the model hub", "name the file in")


def test_blocks_beyond_the_model_and_levels_beyond_the_cache(project: Project) -> None:
    project.ok("prepare")
    project.set("extract.blocks", ["first", 40])
    project.fails("extract", "blocks must lie in 0..5", "[40]", "`extract.blocks`")
    project.set("extract.blocks", ["first", "last"])
    project.ok("extract")
    levels = "holds the levels 0, 5, first, last, not late"
    project.fails("context", levels, "`backbones.<name>.context`")
    project.set("backbones.tiny.context", {"first": 1.0, "last": 1.0})
    project.ok("context")
    project.set("graph.level", "middle")
    project.fails("graph", "holds the levels", "not middle", "extract.blocks")


def test_a_full_disk_keeps_what_was_finished(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cache import feature_writer

    project.shards(96)
    project.ok("prepare")
    write, calls = feature_writer.write_shard, []

    def full(folder: Path, done: Path, shard: int, arrays: dict) -> None:
        calls.append(shard)
        if len(calls) >= 3:
            raise OSError(28, "No space left on device", str(folder))
        write(folder, done, shard, arrays)

    monkeypatch.setattr(feature_writer, "write_shard", full)
    project.fails("extract", "the disk is full", "Finished parts are kept")
    monkeypatch.setattr(feature_writer, "write_shard", write)
    assert "resumed: 2 of 5 shards were finished" in project.run("extract").output


def test_two_processes_never_share_a_work_folder(project: Project) -> None:
    from cache.store.artefact import work_folder

    held = work_folder("data/x", "abc")
    with work_folder("data/x", "abc"), pytest.raises(ValueError, match="by another process"):
        held.__enter__()


def test_int8_halves_the_cache_within_half_a_step(project: Project) -> None:
    project.made("extract")
    exact = Features.open(CACHE)
    tokens = {tile: exact.tokens("middle", tile) for tile in range(len(exact.tiles))}
    large = (CACHE / "block_03/c/0/0").stat().st_size
    project.set("extract.dtype", "int8")
    project.ok("extract")
    coarse = Features.open(CACHE)
    assert coarse.manifest["params"]["dtype"] == "int8"
    assert coarse.manifest["fingerprint"] != exact.manifest["fingerprint"]
    scales = (CACHE / "block_03_scale/c/0/0").stat().st_size
    assert (CACHE / "block_03/c/0/0").stat().st_size < 0.51 * large and scales < 0.1 * large
    for tile, values in tokens.items():
        found = coarse.tokens("middle", tile)
        assert found.dtype == np.float16
        step = np.abs(values.astype(np.float64)).max(axis=0) / 127
        rounding = np.spacing(np.abs(found)).astype(np.float64)
        assert (np.abs(found.astype(np.float64) - values) <= step / 2 + rounding).all()
        assert np.array_equal(coarse.rgb(tile), exact.rgb(tile))
    project.ok("context", "graph", "train", "segment", "eval")
    result = project.run("predict", "photos/images/val", "--out", "new")
    assert result.exit_code == 0, result.output
    (CACHE / "block_03_scale/c/0/0").unlink()
    with pytest.raises(ValueError, match="block_03 lacks the shard that holds tile 0"):
        coarse.tokens("middle", 0)


def test_work_ahead_is_bounded_in_order_and_ends_with_an_error() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            drawn.append(number)
            yield number

    def square(number: int) -> int:
        if number == 12:
            raise OSError("the thirteenth")
        return number**2

    stream = ahead(square, items(), threads=2, waiting=3)
    for number in range(12):
        assert next(stream) == (number, number**2)
        assert len(drawn) <= number + 4
    with pytest.raises(OSError, match="the thirteenth"):
        list(stream)
    stream = ahead(square, items(), threads=2, waiting=3)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_shards_in_a_row_equal_single_ones(project: Project) -> None:
    from stages import extract

    project.shards(96)
    project.ok("prepare", "extract")
    expected = tree_bytes(CACHE / "block_00")
    params = extract.load()
    rows = extract.read_index("data/index.csv")
    backbone = extract.open_backbone("test_vit", project.tree["backbones"]["tiny"]["weights"])
    manifest = extract.describe(params, rows, backbone)
    job, todo, shards = extract.declare(params, manifest, rows, "data/index.csv", Path("single"))
    assert todo == list(range(shards)) and shards == 5
    for shard in reversed(todo):
        extract.fill_shard(job, shard)
    assert tree_bytes(Path(job.folder) / "block_00") == expected


def test_a_photo_that_vanished_ends_the_run_and_keeps_the_shards_before(project: Project) -> None:
    project.shards(48)
    project.ok("prepare")
    last = Path("photos/images/val/002.jpg")
    content = last.read_bytes()
    last.unlink()
    project.fails("extract", "photos/images/val/002.jpg cannot be decoded")
    last.write_bytes(content)
    output = project.run("extract").output
    assert "resumed: 7 of 9 shards" in output or "resumed: 6 of 9 shards" in output


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_disk_is_told_before_and_is_not_filled(
    project: Project, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    project.set("extract.dtype", dtype)
    project.ok("prepare")
    with monkeypatch.context() as patch:
        patch.setattr(extract, "free_bytes", lambda _: 1000)
        project.fails("extract", "1 kB are free", "Make room", "extract.dtype to int8")
    assert not CACHE.exists()
    told = []
    with monkeypatch.context() as patch:
        patch.setattr(extract, "check_space", lambda _, *sizes: told.append(sizes))
        project.ok("extract")
    ((tiles, total, missing),) = told
    levels = [path for path in CACHE.iterdir() if path.name != "tiles" and path.is_dir()]
    files = [path for level in levels for path in level.glob("c/**/*") if path.is_file()]
    assert (tiles, total) == (9, missing)
    assert total == pytest.approx(sum(path.stat().st_size for path in files), rel=0.05)
