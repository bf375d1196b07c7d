"""MaskCLIP: patches of CLIP's image encoder, each classified by the names of the classes.

Zhou, Loy, Dai, "Extract Free Dense Labels from CLIP", ECCV 2022. In the last block a token attends
to itself alone, so that attention is its value projection and its output projection. As in the
authors' program for a ViT, the rest of that block stays: the residual and the MLP, then the last
norm and the projection to the texts; the image is seen whole.

Left out: key smoothing and prompt denoising, both optional, and MaskCLIP+, which trains. The paper
has 85 prompts, here they are the 80 of open_clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipeline.geometry import resize

SIDE = 512  # short side of what CLIP sees densely, px


class Clip(NamedTuple):
    """A CLIP of open_clip, and the classes as it knows them."""

    model: Any
    prepare: Callable[[Image.Image], Tensor]  # a whole image as the model was trained to see it
    texts: Tensor  # float32 (classes, D), of unit length


def import_open_clip() -> Any:
    """The package, which is optional.

    Raises:
        click.ClickException: it is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise click.ClickException(
            f"maskclip and reco need the package open_clip_torch, found none ({error}): "
            'pip install -e ".[clip]"'
        ) from error
    return open_clip


def load(name: str, weights: str, classes: Sequence[str]) -> Clip:
    """Load a CLIP and embed the names of the classes, each the mean over the prompts.

    Args:
        name: a model of open_clip, such as ViT-B-16-quickgelu, or local-dir:<folder>.
        weights: their tag, such as openai, or a file; a folder has its own.

    Raises:
        click.ClickException: open_clip is not installed or cannot load it, or it is no ViT of CLIP.
    """
    package = import_open_clip()
    try:
        model, prepare = package.create_model_from_pretrained(name, weights)
    except (RuntimeError, ValueError, OSError) as error:
        raise click.ClickException(
            f"open_clip cannot load {name} with the weights {weights} ({error}): name another by "
            "--clip-model and --clip-pretrained, or a folder by --clip-model local-dir:<folder>"
        ) from error
    visual = model.visual
    if not isinstance(visual, package.transformer.VisionTransformer) or visual.attn_pool:
        raise click.ClickException(
            f"maskclip and reco look into a ViT that ends in its class token, found the "
            f"{type(visual).__name__} of {name}: choose another, such as ViT-B-16-quickgelu"
        )
    model.eval()
    prompts = package.OPENAI_IMAGENET_TEMPLATES
    texts = package.build_zero_shot_classifier(model, package.get_tokenizer(name), classes, prompts)
    return Clip(model, prepare, texts.T)


def cosines(clip: Clip, image: np.ndarray) -> Tensor:
    """Cosines of the patches to the classes: float32 ``(classes, h, w)``.

    Args:
        image: uint8 ``(H, W, 3)``; its short side is resized to `SIDE`, both to whole patches.
    """
    visual = clip.model.visual
    sides = np.array(image.shape[:2])
    patch = np.array(visual.patch_size)
    wanted = np.maximum(np.round(sides * SIDE / sides.min() / patch), 1).astype(int) * patch
    pixels = torch.from_numpy(resize(image, *wanted.tolist()).astype(np.float32) / 255)
    pixels = (pixels - torch.tensor(visual.image_mean)) / torch.tensor(visual.image_std)
    features = F.normalize(dense(visual, pixels.permute(2, 0, 1)[None]), dim=1)
    return torch.einsum("chw,nc->nhw", features[0], clip.texts)


@torch.inference_mode()
def dense(visual: Any, pixels: Tensor) -> Tensor:
    """Features of all patches, where images and texts meet: ``(B, D, h, w)``.

    Args:
        visual: the ViT of open_clip.
        pixels: normalised ``(B, 3, H, W)``, of whole patches.
    """
    patches = visual.conv1(pixels)
    grid = patches.shape[2:]
    own = visual.class_embedding.expand(len(patches), 1, -1)
    tokens = torch.cat([own, patches.flatten(2).mT], dim=1) + positions(visual, grid)
    tokens = visual.ln_pre(tokens)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        tokens = block(tokens)
    alone = torch.full((tokens.shape[1],) * 2, -torch.inf).fill_diagonal_(0).to(tokens)
    tokens = last(tokens, attn_mask=alone)
    features = visual.ln_post(tokens[:, 1:]) @ visual.proj
    return features.mT.unflatten(2, grid)


def positions(visual: Any, grid: Sequence[int]) -> Tensor:
    """Embeddings of the class token's position and of a grid's (bicubic): ``(1 + h * w, C)``."""
    own, places = visual.positional_embedding.split([1, len(visual.positional_embedding) - 1])
    places = F.interpolate(places.T.unflatten(1, visual.grid_size)[None], grid, mode="bicubic")
    return torch.cat([own, places[0].flatten(1).T])


@torch.inference_mode()
def embedding(clip: Clip, image: np.ndarray) -> Tensor:
    """The unit embedding float32 ``(D,)`` of a whole image, uint8 ``(H, W, 3)``."""
    pixels = clip.prepare(Image.fromarray(image))[None]
    return clip.model.encode_image(pixels, normalize=True)[0]
