"""MaskCLIP and ReCo: a random CLIP against other ways to compute it, planted vectors, the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from bench import contest
from bench.rivals import maskclip, reco
from bench.rivals.dsm import Picture
from tests.conftest import Project, tables

CLASSES = ["sky", "meadow", "road", "box"]
CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as open_clip reads it: a tiny CLIP with random weights."""
    open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is of the extra clip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**CONFIG)
        for name, value in model.named_parameters():
            if name.endswith("bias"):  # open_clip starts them at 0, where a lost one is not seen
                torch.nn.init.normal_(value)
    path = tmp_path_factory.mktemp("clip")
    colours = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    config = {"model_cfg": CONFIG, "preprocess_cfg": colours}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    return path


@pytest.fixture
def clip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> maskclip.Clip:
    """The tiny CLIP, which sees 32 pixels of the short side."""
    monkeypatch.setattr(maskclip, "SIDE", 32)
    return maskclip.load(f"local-dir:{folder}", "openai", CLASSES)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_where_all_values_are_equal_attention_is_what_it_is_in_the_model(
    clip: maskclip.Clip,
) -> None:
    visual = clip.model.visual
    visual.output_tokens = True
    with torch.no_grad():
        visual.transformer.resblocks[-1].attn.in_proj_weight[64:] = 0  # leaves the bias of values
        tokens = visual(noise(2, 3, 32, 32))[1]
    expected = (tokens @ visual.proj).mT.unflatten(2, (4, 4))
    found = maskclip.dense(visual, noise(2, 3, 32, 32))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (24, 56)])
def test_the_last_block_is_values_projected_its_mlp_and_the_rest(
    clip: maskclip.Clip, size: tuple[int, int]
) -> None:
    visual, pixels = clip.model.visual.double(), noise(1, 3, *size).double()
    found = maskclip.dense(visual, pixels)
    first, last = visual.transformer.resblocks
    grid = size[0] // 8, size[1] // 8
    places = visual.positional_embedding[1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    places = F.interpolate(places, grid, mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    x = visual.conv1(pixels).permute(0, 2, 3, 1).flatten(1, 2) + places
    own = visual.class_embedding + visual.positional_embedding[0]
    x = first(visual.ln_pre(torch.cat([own[None, None], x], dim=1)))[0, 1:]
    values = last.ln_1(x) @ last.attn.in_proj_weight[64:].T + last.attn.in_proj_bias[64:]
    x = x + values @ last.attn.out_proj.weight.T + last.attn.out_proj.bias
    x = visual.ln_post(x + last.mlp(last.ln_2(x))) @ visual.proj
    torch.testing.assert_close(found[0], x.T.unflatten(1, grid), atol=1e-10, rtol=1e-10)


def test_a_class_is_the_mean_of_its_prompts_and_colours_are_the_models(
    clip: maskclip.Clip,
) -> None:
    import open_clip

    prompts = [prompt("road") for prompt in open_clip.OPENAI_IMAGENET_TEMPLATES]
    with torch.no_grad():
        each = F.normalize(clip.model.encode_text(open_clip.tokenize(prompts)), dim=1)
    texts = F.normalize(each.mean(0), dim=0)
    torch.testing.assert_close(clip.texts[2], texts)
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    pixels = (image / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
    features = maskclip.dense(
        clip.model.visual, torch.tensor(pixels.transpose(2, 0, 1)[None]).float()
    )
    expected = F.cosine_similarity(features[0], texts[:, None, None], dim=0)
    torch.testing.assert_close(maskclip.cosines(clip, image)[2], expected, atol=1e-5, rtol=1e-5)
    assert maskclip.cosines(clip, image.repeat(3, axis=0)).shape == (4, 10, 4)  # whole patches


def planted() -> tuple[list[np.ndarray], list[int], list[int]]:
    """Images of noise and of two things that all share, and where these are; of any lengths."""
    rng = np.random.default_rng(0)
    images, places = [], ([2, 5, 0], [4, 1, 3])
    for number in range(3):
        rows = np.zeros((6, 24))
        rows[:, 6 * number + 6 : 6 * number + 12] = np.eye(6)  # alike in no two images
        for axis, where in enumerate(places):
            rows[where[number]] = np.eye(24)[axis] + rng.normal(scale=0.1 - 0.05 * axis, size=24)
        images.append((rows * rng.uniform(0.5, 2, (6, 1))).astype(np.float32))
    return images, *places


def test_seeds_are_what_the_images_share_and_the_text_says_which() -> None:
    images, loose, close = planted()
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in images]
    even = [np.ones(6, np.float32)] * 3
    assert reco.seeds(units, even) == close  # they are more alike
    told = [np.where(np.arange(6) == place, 1, 0.3) for place in loose]
    assert reco.seeds(units, told) == loose
    mean = sum(rows[place] for rows, place in zip(units, loose, strict=True))
    expected = mean / np.linalg.norm(mean)
    np.testing.assert_allclose(reco.reference(images, told), expected, atol=1e-6)
    assert expected[0] > 0.95


def test_an_archive_holds_the_images_nearest_to_the_text() -> None:
    angles = torch.tensor([0.0, 0.5, 1.0, 1.5])
    images = torch.stack([angles.cos(), angles.sin()], dim=1)
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert reco.archives(images, texts, 2).tolist() == [[0, 1], [3, 2]]
    assert reco.archives(images, texts, 50).shape == (2, 4)


def test_references_come_from_the_archive_of_each_class_under_its_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    things, texts = np.eye(5, dtype=np.float32), torch.eye(4)

    def picture(number: int) -> Picture:  # left the thing of a class, right one that all share
        return Picture(things[[number % 4, 4] * 2], np.zeros((4, 3)), (2, 2))

    def attention(clip: maskclip.Clip, image: int, grid: tuple[int, int]) -> torch.Tensor:
        left = torch.tensor([1, 0]).expand(2, 2)  # of the class's text; others look to the right
        return torch.stack([left if label == image % 4 else 1 - left for label in range(4)])

    monkeypatch.setattr(reco, "embedding", lambda clip, image: texts[image % 4])
    monkeypatch.setattr(reco, "attention", attention)
    found = reco.fit(maskclip.Clip(None, None, texts), 12, lambda i: i, picture, most=3)
    np.testing.assert_allclose(found, things[:4], atol=1e-6)


def test_scores_are_cosines_to_the_references_times_what_clip_says(clip: maskclip.Clip) -> None:
    image, things = np.full((32, 32, 3), 7, np.uint8), np.eye(8, dtype=np.float32)
    seen = Picture(3 * things[:4], np.zeros((4, 3)), (2, 2))
    likely = torch.sigmoid(10 * maskclip.cosines(clip, image))
    likely = F.interpolate(likely[None], (2, 2), mode="bilinear")[0].flatten(1)
    scores = reco.scores(clip, things[:4], seen, image).flatten(1)
    torch.testing.assert_close(scores, torch.sigmoid(torch.eye(4)) * likely)


def test_they_are_rows_of_the_table_that_no_mapping_helps(
    project: Project, folder: Path, clip: maskclip.Clip
) -> None:
    project.made("context")
    named = ["maskclip", "reco:last"]
    asked = [*named, "--clip-model", f"local-dir:{folder}", "--archive", "3", "--seeds", "2"]
    (table,) = tables(contest.main, *asked)
    assert list(table["rows"]) == named
    for (found,) in table["rows"].values():  # one run: nothing is drawn
        assert found["majority_iou"] == found["hungarian"]
    right = []
    for path in sorted(Path("photos/labels/val").iterdir()):
        image = np.asarray(Image.open(f"photos/images/val/{path.stem}.jpg"))
        label = torch.from_numpy(np.array(Image.open(path)))
        large = F.interpolate(maskclip.cosines(clip, image)[None], label.shape, mode="bilinear")
        right.append((large[0].argmax(0) == label).float().mean().item())
    accuracy = table["rows"]["maskclip"][0]["hungarian"][1]
    assert accuracy == pytest.approx(100 * np.mean(right), abs=0.01)
    assert tables(contest.main, *asked) == [table]


@pytest.mark.parametrize("opponent", ["maskclip", "reco:last"])
def test_without_open_clip_they_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, opponent: str
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    result = CliRunner().invoke(contest.main, [opponent])
    assert result.exit_code == 1 and 'pip install -e ".[clip]"' in result.output


@pytest.mark.parametrize("model", ["local-dir:nowhere", "ViT-Z-16", "ViT-B-16"])
def test_a_clip_that_cannot_be_had_is_refused(folder: Path, model: str) -> None:
    with pytest.raises(click.ClickException, match=r"cannot load .* --clip-model local-dir:"):
        maskclip.load(model, "no-such-tag", CLASSES)


def test_a_clip_without_a_vit_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    convolutions = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16}
    model = open_clip.CLIP(**{**CONFIG, "vision_cfg": convolutions})
    monkeypatch.setattr(open_clip, "create_model_from_pretrained", lambda *_: (model, None))
    with pytest.raises(click.ClickException, match="found the ModifiedResNet of RN8"):
        maskclip.load("RN8", "openai", CLASSES)


def test_maskclip_looks_at_no_level() -> None:
    result = CliRunner().invoke(contest.main, ["maskclip:last"])
    assert result.exit_code and "an opponent is maskclip, or one of" in result.output
