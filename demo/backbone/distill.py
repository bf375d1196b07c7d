"""Distillation of a small ViT from the cached tokens of a large one, without labels.

The teacher has run once, in the extract stage; the student learns from its cache alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models import save_for_hf
from torch import Tensor, nn

from cache import heads
from cache.backbone import load_backbone
from cache.features import Features
from cache.images import read_image
from cache.index import read_index
from cache.store.artefact import publish
from pipeline.features.vit import normalise_pixels
from pipeline.features.whitening import unit_rows
from pipeline.geometry import resize
from stages.running.progress import bar, track

PATCH, WIDTH, DEPTH, HEADS = 8, 192, 6, 3
GRID = (30, 40)  # patches of an image of 240 x 320 px, for which position embeddings are learned
SOURCES = (0, 1, 2, 4, 6, 8)  # blocks of the teacher that the student starts from
CROP = (15, 20)  # patches that the student sees while it learns from crops
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF_WHITENED = 0.25  # exponent of the eigenvalues that divide the teacher's components


class Lesson(NamedTuple):
    """One image with what the teacher makes of it."""

    pixels: np.ndarray  # uint8 (3, grid_h * PATCH, grid_w * PATCH)
    target: np.ndarray  # float16 (grid_h, grid_w, WIDTH), of unit length


@click.command()
@click.option("--features", "features_path", default="data/features.zarr", help="Teacher's cache.")
@click.option("--index", default="data/index.csv", help="Index of its images.")
@click.option("--level", default="8", help="Level of the cache to learn.")
@click.option("--teacher", default=None, help="Weights of the teacher; start from a part of them.")
@click.option("--out", default="demo/backbone", help="Folder to write, for timm's local-dir:.")
@click.option("--steps", default=2800, help="Steps of 2400 patches.")
@click.option("--lr", default=1.5e-3, help="Peak of the learning rate (AdamW, cosine).")
@click.option("--seed", default=0, help="Of weights, order and crops.")
def main(
    features_path: str,
    index: str,
    level: str,
    teacher: str | None,
    out: str,
    steps: int,
    lr: float,
    seed: int,
) -> None:
    """Distil the demonstration backbone from a cache that `eigenseg extract` made.

    The teacher's tokens of length 1 are projected on their first principal components, each
    divided by the fourth root of its variance: half-way to whitening, which suits K-means. The
    student's normalised last block learns their directions (cosine). A killed run goes on from
    its last checkpoint.
    """
    torch.manual_seed(seed)
    features = Features.open(features_path)
    lessons = read_lessons(features, index, level)
    student = create_student()
    if teacher:
        start_from(student, load_backbone(features.manifest["model"], teacher))
    checkpoint = Path(f"{out}.checkpoint")
    learn(student, lessons, checkpoint, steps=steps, lr=lr, seed=seed)
    work = Path(f"{out}.partial")
    save_for_hf(student.eval().half(), str(work), safe_serialization=True)
    for file in sorted(work.iterdir()):  # beside the model card, which stays
        publish(file, Path(out) / file.name)
    work.rmdir()
    checkpoint.unlink(missing_ok=True)


def learn(
    student: nn.Module,
    lessons: list[Lesson],
    checkpoint: Path,
    *,
    steps: int,
    lr: float,
    seed: int,
) -> None:
    """Take all the steps, from the last checkpoint if there is one; crops first, images later."""
    optimiser = torch.optim.AdamW(_groups(student), lr=lr, betas=(0.9, 0.98))
    first = _resume(checkpoint, student, optimiser)
    student.train()
    recent: list[float] = []
    with bar() as progress:
        task = progress.add_task("distilling", total=steps, unit="step")
        progress.advance(task, first)
        for step in range(first, steps):
            generator = np.random.default_rng([seed, step])
            crop = step < 0.7 * steps or step % 2 == 0
            loss = take_step(student, optimiser, lessons, crop, generator, rate(step, steps) * lr)
            progress.update(task, advance=1, description=f"distilling, 1 - cos = {loss:.3f}")
            recent = [*recent, loss][-100:]
            if step % 100 == 99:
                click.echo(f"step {step + 1}: 1 - cos = {np.mean(recent):.4f} over the last 100")
                state = {"student": student.state_dict(), "adam": optimiser.state_dict()}
                heads.save_checkpoint(checkpoint, {**state, "step": step + 1})


def create_student() -> nn.Module:
    """The student with random weights, an architecture of timm, without class token."""
    return timm.create_model(
        "vit_tiny_patch16_224",
        pretrained=False,
        num_classes=0,
        patch_size=PATCH,
        depth=DEPTH,
        embed_dim=WIDTH,
        num_heads=HEADS,
        img_size=(GRID[0] * PATCH, GRID[1] * PATCH),
        class_token=False,
        global_pool="",
        dynamic_img_size=True,
        pretrained_cfg_overlay={
            "mean": MEAN,
            "std": STD,
            "input_size": (3, GRID[0] * PATCH, GRID[1] * PATCH),
            "tag": "demo",
        },
    )


def start_from(student: nn.Module, teacher: nn.Module) -> None:
    """Give the student every second channel and head of some blocks of the teacher.

    Weight selection (Xu et al., "Initializing Models with Larger Ones", ICLR 2024). It computes
    nothing useful, but learns faster than from random weights.
    """
    large = teacher.state_dict()
    side = math.isqrt(large["pos_embed"].shape[1] - 1)
    prefix = large["pos_embed"].shape[1] - side**2
    stride = large["pos_embed"].shape[2] // WIDTH
    heads_ = torch.arange(0, large["pos_embed"].shape[2]).view(-1, 64)[::stride].flatten()
    channels, hidden = slice(None, None, stride), slice(None, None, stride)
    joint = torch.cat([heads_ + part * large["pos_embed"].shape[2] for part in range(3)])
    positions = resample_abs_pos_embed(large["pos_embed"][:, prefix:], GRID, (side, side), 0)
    found = {
        "pos_embed": positions[..., channels],
        "patch_embed.proj.weight": F.interpolate(
            large["patch_embed.proj.weight"][channels], (PATCH, PATCH), mode="area"
        )
        * (large["patch_embed.proj.weight"].shape[-1] / PATCH) ** 2,
        "patch_embed.proj.bias": large["patch_embed.proj.bias"][channels],
    }
    for number, source in enumerate(SOURCES):
        block = {
            k.split(".", 2)[2]: v for k, v in large.items() if k.startswith(f"blocks.{source}.")
        }
        scale = [block.get(f"ls{i}.gamma", torch.ones(()))[..., None] for i in (1, 2)]
        small = {
            "attn.qkv.weight": block["attn.qkv.weight"][joint][:, channels],
            "attn.qkv.bias": block["attn.qkv.bias"][joint],
            "attn.proj.weight": (scale[0] * block["attn.proj.weight"])[channels][:, heads_],
            "attn.proj.bias": (scale[0][..., 0] * block["attn.proj.bias"])[channels],
            "mlp.fc1.weight": block["mlp.fc1.weight"][hidden][:, channels],
            "mlp.fc1.bias": block["mlp.fc1.bias"][hidden],
            "mlp.fc2.weight": (scale[1] * block["mlp.fc2.weight"])[channels][:, hidden],
            "mlp.fc2.bias": (scale[1][..., 0] * block["mlp.fc2.bias"])[channels],
        }
        for norm in ("norm1", "norm2"):
            small |= {f"{norm}.{k}": block[f"{norm}.{k}"][channels] for k in ("weight", "bias")}
        found |= {f"blocks.{number}.{name}": value for name, value in small.items()}
    found |= {f"norm.{k}": torch.full((WIDTH,), v) for k, v in (("weight", 1.0), ("bias", 0.0))}
    student.load_state_dict(found)


def project(features: Features, level: str, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``(C,)`` and projection ``(C, WIDTH)`` of the teacher's tokens of unit length."""
    channels = features.channels(level)
    total, products, count = np.zeros(channels), np.zeros((channels, channels)), 0
    for tile in track(tiles, "teacher's principal components"):
        tokens = unit_rows(features.tokens(level, int(tile)).astype(np.float32))
        total += tokens.sum(axis=0)
        products += tokens.T @ tokens
        count += len(tokens)
    mean = total / count
    values, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    values, vectors = values[::-1][:WIDTH], vectors[:, ::-1][:, :WIDTH]
    projection = vectors * np.maximum(values, 1e-9) ** -HALF_WHITENED
    return mean.astype(np.float32), projection.astype(np.float32)


def read_lessons(features: Features, index: str, level: str) -> list[Lesson]:
    """All images at the student's size and their targets, in memory (1 MB an image)."""
    rows = read_index(index)
    tiles = np.arange(len(features.tiles))
    mean, projection = project(features, level, tiles)
    lessons = []
    for number in track(tiles, "reading images"):
        tile = features.tiles[number]
        grid = int(tile["grid_h"]), int(tile["grid_w"])
        height, width = grid[0] * PATCH, grid[1] * PATCH
        path = rows[tile["image"]].path
        pixels = resize(read_image(path), height, width)
        pixels = pixels[:, ::-1] if tile["flip"] else pixels
        tokens = unit_rows(features.tokens(level, int(number)).astype(np.float32))
        target = unit_rows((tokens - mean) @ projection).reshape(*grid, WIDTH)
        lessons.append(Lesson(pixels.transpose(2, 0, 1).copy(), target.astype(np.float16)))
    return lessons


def take_step(
    student: nn.Module,
    optimiser: torch.optim.Optimizer,
    lessons: list[Lesson],
    crop: bool,
    generator: np.random.Generator,
    lr: float,
) -> float:
    """One step on 8 crops or on two whole images; the loss, 1 - cosine."""
    chosen = generator.choice(len(lessons), 8 if crop else 2, replace=False)
    optimiser.zero_grad()
    total = 0.0
    for batch in _batches([lessons[i] for i in chosen], crop, generator):
        pixels, target, place = batch
        share = len(target) / len(chosen)
        loss = (1 - F.cosine_similarity(see(student, pixels, *place), target, dim=-1)).mean()
        (loss * share).backward()
        total += loss.item() * share
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.step()
    return total


Place = tuple[tuple[int, int], np.ndarray]  # grid of the images, first row and column of each crop


def _batches(
    lessons: list[Lesson], crop: bool, generator: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor, Place]]:
    """Augmented images of one grid at a time: pixels, targets (B, patches, WIDTH), their place."""
    by_grid: dict[tuple[int, int], list[Lesson]] = {}
    for lesson in lessons:
        by_grid.setdefault((lesson.target.shape[0], lesson.target.shape[1]), []).append(lesson)
    for grid, same in by_grid.items():
        size = (min(CROP[0], grid[0]), min(CROP[1], grid[1])) if crop else grid
        free = [grid[axis] - size[axis] + 1 for axis in (0, 1)]
        corners = generator.integers(0, free, size=(len(same), 2))
        pixels, targets = [], []
        for lesson, (top, left) in zip(same, corners, strict=True):
            flip = slice(None, None, -1 if generator.random() < 0.5 else 1)
            mirrored = lesson.pixels[:, :, flip], lesson.target[:, flip]
            rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
            big = [slice(s.start * PATCH, s.stop * PATCH) for s in (rows, columns)]
            pixels.append(jitter(mirrored[0][:, big[0], big[1]] / np.float32(255), generator))
            targets.append(mirrored[1][rows, columns].reshape(-1, WIDTH))
        yield (
            torch.from_numpy(np.stack(pixels)),
            torch.from_numpy(np.stack(targets)).float(),
            (grid, corners),
        )


def jitter(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Other light: brightness, contrast, saturation and tint of ``(3, H, W)`` in [0, 1]."""
    grey = pixels.mean(axis=0, keepdims=True)
    values = grey + (pixels - grey) * generator.uniform(0.6, 1.3)
    values = (values - values.mean()) * generator.uniform(0.7, 1.3) + values.mean()
    values = values * generator.uniform(0.75, 1.25) * generator.normal(1, 0.04, (3, 1, 1))
    return np.clip(values, 0, 1).astype(np.float32)


def see(student: nn.Module, pixels: Tensor, grid: tuple[int, int], corners: np.ndarray) -> Tensor:
    """Normalised tokens ``(B, patches, WIDTH)`` of crops, each with the positions of its place.

    Args:
        pixels: ``(B, 3, H, W)`` in [0, 1].
        grid: patches of the images that the crops come from.
        corners: int ``(B, 2)``, row and column of the first patch.
    """
    tokens = student.patch_embed(normalise_pixels(pixels, MEAN, STD))  # type: ignore[operator]
    height, width = pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH
    positions = student.pos_embed
    if grid != GRID:
        positions = resample_abs_pos_embed(positions, grid, GRID, 0)  # type: ignore[arg-type]
    table = positions.view(*grid, -1)  # type: ignore[operator]
    here = [table[row : row + height, column : column + width] for row, column in corners]
    tokens = tokens + torch.stack(here)
    return student.norm(student.blocks(tokens.flatten(1, 2)))  # type: ignore[operator]


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear over the first 5 %, then a cosine to 1 %."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def _groups(student: nn.Module) -> list[dict]:
    """Weight decay for matrices alone."""
    named = dict(student.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim > 1 and name != "pos_embed"]
    rest = [p for name, p in named.items() if p.ndim <= 1 or name == "pos_embed"]
    return [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]


def _resume(checkpoint: Path, student: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    found = heads.load_checkpoint(checkpoint)
    if found is None:
        return 0
    student.load_state_dict(found["student"])
    optimiser.load_state_dict(found["adam"])
    return found["step"]


if __name__ == "__main__":
    main()
