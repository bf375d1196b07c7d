"""The bundled demonstration backbone: small, whole, and knowing more than colours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from cache.backbone import facts, load_backbone
from cache.images import read_image
from cache.store.errors import InputError
from demo.backbone import distill
from demo.draw import CLASSES, draw_scene, scene_generator
from pipeline.evaluation import confusion, count, majority_iou, scores
from pipeline.features.vit import Backbone, downsample, tokens
from pipeline.geometry import resize, tile_pixels
from pipeline.head import kmeans
from tests.conftest import REPOSITORY, Project

DEMO = REPOSITORY / "demo/backbone"


@pytest.fixture(scope="module")
def demo() -> Backbone:
    model = load_backbone(f"local-dir:{DEMO}", None)
    return Backbone(model, **facts(model))


def last_block(backbone: Backbone, pixels: torch.Tensor) -> np.ndarray:
    """Tokens after the final norm, (B, patches, C)."""
    last = backbone.depth - 1
    found = tokens(backbone, pixels, [last], [last], keys=False, autocast=None)
    return found[f"block_{last:02d}"].numpy()


def test_it_is_small_and_takes_images_of_any_size(demo: Backbone) -> None:
    parameters = sum(p.numel() for p in demo.model.parameters())
    assert 1e6 <= parameters <= 3e6
    assert (DEMO / "model.safetensors").stat().st_size <= 6e6
    assert demo.patch == distill.PATCH and demo.mean == distill.MEAN and demo.std == distill.STD
    for height, width in ((240, 320), (64, 400)):
        found = last_block(demo, torch.rand(1, 3, height, width))
        assert found.shape == (1, height // 8 * (width // 8), distill.WIDTH)
        assert np.isfinite(found).all()


def test_its_clusters_follow_classes_better_than_colours_do(demo: Backbone) -> None:
    drawn = [draw_scene(scene_generator(5, 1, number)) for number in range(8)]
    pixels = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2) / 255
    labels = np.stack([label[4::8, 4::8].ravel() for _, label in drawn])
    miou = {}
    for name, values in (
        ("features", last_block(demo, pixels)),
        ("colours", downsample(pixels, 8).numpy()),
    ):
        points = values.reshape(-1, values.shape[-1]).astype(np.float32)
        spherical = name == "features"
        model = kmeans.fit(points, 32, spherical=spherical, whiten=None, seed=0)
        ids = kmeans.scores(model, points).argmax(axis=1)
        table = count(ids, labels.ravel(), 32, len(CLASSES))
        miou[name] = scores(confusion(table, majority_iou(table))).miou
    assert miou["features"] > miou["colours"] + 5


def test_it_is_near_its_teacher_on_photos_it_has_not_seen(
    demo: Backbone, reference_data: Callable[[str], Path]
) -> None:
    weights = reference_data("weights/vit_small_patch14_dinov2.safetensors")
    photos = sorted(reference_data("data/camvid/images/test").glob("*.jpg"))[::60]
    student = np.concatenate([last_block(demo, see(path, 240, 320))[0, ::7] for path in photos])
    teacher = load_backbone("vit_small_patch14_dinov2.lvd142m", str(weights))
    large = Backbone(teacher, **facts(teacher))
    target = np.concatenate(
        [
            tokens(large, see(path, 420, 560), [8], [8], keys=False, autocast=None)["block_08"][
                0, ::7
            ]
            for path in photos
        ]
    )
    first, second = (similarities(values) for values in (student, target))
    assert np.corrcoef(first, second)[0, 1] > 0.6


def see(path: Path, height: int, width: int) -> torch.Tensor:
    return tile_pixels(resize(read_image(path), height, width), (0, 0, height, width), 1)[None]


def similarities(values: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of centred rows."""
    centred = values - values.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(unit), 1)]


@pytest.fixture
def student() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return distill.create_student().eval()


def test_the_student_sees_whole_images_as_timm_does(student: torch.nn.Module) -> None:
    pixels = torch.rand(2, 3, 240, 320)
    corners = np.zeros((2, 2), dtype=int)
    backbone = Backbone(student, distill.PATCH, distill.DEPTH, distill.MEAN, distill.STD)
    with torch.inference_mode():
        found = distill.see(student, pixels, distill.GRID, corners)
    assert np.allclose(found.numpy(), last_block(backbone, pixels), atol=1e-5)


def test_a_crop_keeps_the_positions_of_its_place(student: torch.nn.Module) -> None:
    pixels = torch.zeros(2, 3, 120, 160)
    with torch.inference_mode():
        student.pos_embed.zero_()
        student.pos_embed.view(30, 40, -1)[20, 30] = 5.0
        found = distill.see(student, pixels, distill.GRID, np.array([[0, 0], [15, 20]]))
    first, second = found.view(2, 15, 20, -1)
    assert torch.allclose(first, first[0, 0].expand_as(first), atol=1e-5)
    away = (second - second[0, 0]).norm(dim=-1)
    assert away.argmax() == 5 * 20 + 10


def test_it_starts_from_every_second_channel_and_head_of_the_teacher(
    student: torch.nn.Module,
) -> None:
    teacher = timm.create_model(
        "vit_small_patch14_dinov2", num_classes=0, img_size=56, depth=9, init_values=0.5
    )
    distill.start_from(student, teacher)
    large, small = teacher.blocks[8], student.blocks[5]
    kept = torch.cat([torch.arange(64) + 128 * head for head in range(3)])
    assert torch.equal(small.attn.qkv.weight[:192], large.attn.qkv.weight[kept][:, ::2])
    assert torch.equal(small.attn.proj.weight, 0.5 * large.attn.proj.weight[::2][:, kept])
    assert torch.equal(small.mlp.fc2.weight, 0.5 * large.mlp.fc2.weight[::2, ::2])


def test_distillation_learns(student: torch.nn.Module) -> None:
    generator = np.random.default_rng(0)
    lessons = []
    for number in range(8):
        image, _ = draw_scene(scene_generator(1, 0, number), 64, 80)
        shades = image.reshape(8, 8, 10, 8, 3).mean(axis=(1, 3)) / 255
        lessons.append((image, shades))
    mixing = generator.normal(size=(3, distill.WIDTH))
    made = []
    for image, shades in lessons:
        target = (shades - 0.5) @ mixing
        target /= np.linalg.norm(target, axis=-1, keepdims=True)
        made.append(distill.Lesson(image.transpose(2, 0, 1), target.astype(np.float16)))
    adam = torch.optim.AdamW(student.parameters(), lr=1e-3)
    losses = [
        distill.take_step(student, adam, made, True, np.random.default_rng(step), 1e-3)
        for step in range(25)
    ]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_a_cache_becomes_a_model_that_timm_loads(project: Project) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(teacher.state_dict(), "teacher.safetensors")
    project.set(
        "backbones.tiny",
        {"model": "vit_tiny_patch16_224", "weights": "teacher.safetensors", "context": {8: 1.0}},
    )
    project.set("extract.blocks", [8])
    project.set("extract.final_norm", [8])
    project.ok("prepare", "extract")
    result = CliRunner().invoke(distill.main, ["--out", "small", "--steps", "1"])
    assert result.exit_code == 0, result.output
    assert not Path("small.checkpoint").exists()
    found = load_backbone("local-dir:small", None)
    assert facts(found)["patch"] == 8 and facts(found)["mean"] == distill.MEAN


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent/config.json, which does not exist"):
        load_backbone(f"local-dir:{tmp_path / 'absent'}", None)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(
        InputError, match=r"cannot be loaded: its config\.json or weights are damaged"
    ):
        load_backbone(f"local-dir:{tmp_path}", None)
