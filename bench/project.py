"""A project to measure on: drawn photos, perhaps a random ViT, made by the real stages."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from cache.backbone import FOLDER
from cache.features import Features
from cache.graphs import Graphs
from pipeline.device import choose_device
from pipeline.head.head import Head
from pipeline.head.training import Batch, optimiser
from stages.context import make_context
from stages.extract import extract
from stages.graph import make_graph
from stages.prepare import prepare
from stages.running.batches import Batches, load_batches, open_source
from stages.settings.params import Params, load
from stages.train import beta_of, build_head, head_shape, start_of

REPOSITORY = Path(__file__).resolve().parent.parent
CLASSES = 6
HEADS = {
    "default": (),
    "paper": (
        "train.start=random",
        "head.levels=[first, middle, last]",
        "head.width=null",
        "head.depth=2",
        "head.mlp_hidden=576",
        "head.level_norm=false",
        "head.orthogonal=true",
    ),
}
ENDLESS = 1_000_000  # epochs, more than are measured


def make_project(
    folder: Path, train: int, val: int, height: int, width: int, settings: Sequence[str] = ()
) -> None:
    """Draw photos and their labels, and write params.yaml: the shipped one with changes.

    Args:
        train, val: photos of each split.
        height, width: of the photos, in pixels.
        settings: further changes, as `change_params` takes them.
    """
    generator = np.random.default_rng(0)
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            _draw(photos, f"{split}/{number:05d}", (height, width), generator)
    (photos / "classes.txt").write_text("".join(f"class {i}\n" for i in range(CLASSES)))
    ours = (
        f"datasets.drawn={{root: {photos}, train: train, eval: {'val' if val else 'train'}}}",
        "dataset=drawn",
        f"backbones.demo.model='{FOLDER}{REPOSITORY / 'demo/backbone'}'",
    )
    change_params(REPOSITORY / "params.yaml", folder / "params.yaml", (*ours, *settings))


def change_params(source: Path, target: Path, settings: Sequence[str]) -> None:
    """Copy a params.yaml with changes, ``dotted.key=value`` each, as `dvc exp run -S` takes them.

    The values are YAML; target may be the source.
    """
    tree = yaml.safe_load(source.read_text())
    for setting in settings:
        key, _, value = setting.partition("=")
        *above, last = key.split(".")
        node = tree
        for name in above:
            node = node[name]
        node[last] = yaml.safe_load(value)
    target.write_text(yaml.safe_dump(tree, sort_keys=False))


def random_backbone(folder: Path, model: str, weights: str | None = None) -> list[str]:
    """Settings that name a timm ViT, with random weights where none are given."""
    if weights is None:
        torch.manual_seed(0)
        weights = str(folder / "weights.safetensors")
        created = timm.create_model(model, pretrained=False, num_classes=0)
        save_file(created.state_dict(), weights)
    entry = f"{{model: {model}, weights: {weights}, context: {{late: 1.0, last: 0.5}}}}"
    return [f"backbones.random={entry}", "backbone=random"]


def _draw(root: Path, name: str, size: tuple[int, int], generator: np.random.Generator) -> None:
    """Smooth colours with noise; the label of a pixel is the band of its brightness."""
    height, width = size
    coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + generator.normal(0, 8, (height, width, 1))
    bands = np.asarray(smooth).mean(axis=2).astype(int) * CLASSES // 256
    for kind, ending, values in (("images", "jpg", noisy), ("labels", "png", bands)):
        path = root / kind / f"{name}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)


class Size(NamedTuple):
    """Size and device of a project; other choices are those of params.yaml."""

    model: str = "vit_small_patch14_dinov2.lvd142m"
    side: int = 420  # px of the square photos after resizing: 30 x 30 patches of 14
    images: int = 16  # in a batch
    batches: int = 1  # in an epoch
    clusters: int = 256
    device: str = "auto"


USUAL = Size()
OPTIONS = (
    click.option("--head", default="both", type=click.Choice([*HEADS, "both"]), help="Whose head."),
    click.option("--model", default=USUAL.model, show_default=True, help="timm ViT, not trained."),
    click.option("--side", default=USUAL.side, show_default=True, help="Of the square images, px."),
    click.option("--images", default=USUAL.images, show_default=True, help="In a batch."),
    click.option("--clusters", default=USUAL.clusters, show_default=True, help="K."),
    click.option("--device", default=USUAL.device, type=click.Choice(["auto", "cpu", "cuda"])),
)


def project_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add `OPTIONS` to a command; it gets ``size`` (`Size`) and ``heads`` (names) of them.

    A command may have an option ``--batches`` of its own: it becomes a part of ``size``.
    """

    @wraps(function)
    def command(head: str, **values: Any) -> None:
        size = Size(**{name: values.pop(name) for name in Size._fields if name in values})
        function(size=size, heads=list(HEADS) if head == "both" else [head], **values)

    for option in reversed(OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Setting:
    """A project's cache, opened for training one of `HEADS`."""

    folder: Path
    params: Params
    cache: Features
    graphs: Graphs
    device: torch.device

    def source(self) -> Batches:
        """Open the source of the batches."""
        params = self.params
        choices = (params.head.levels, params.graph.alpha, params.seed, params.compute.gpu)
        return open_source(self.cache, self.graphs, *choices)

    def batches(self, epochs: range, waited: list[float]) -> Generator[Batch, None, None]:
        """Load the batches of these epochs, as the stage does."""
        return load_batches(self.source(), epochs, self.device, waited)

    def trainee(self, device: torch.device) -> tuple[Head, torch.optim.Optimizer, float]:
        """Build a fresh head on a device; give its optimiser and the weight of the penalty too."""
        params, clusters = self.params, self.params.clusters
        start = start_of(params.train, clusters, params.seed, params.compute.gpu)
        head = build_head(head_shape(params.head, clusters, start, self.cache), params.seed)
        head = head.to(device).train()
        return head, optimiser(head, params.train.lr), beta_of(params.train, clusters)


@contextmanager
def opened(size: Size, heads: Sequence[str], epochs: int = ENDLESS) -> Iterator[dict[str, Setting]]:
    """Make a project in a temporary folder, and open it for training each of these heads."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = make(Path(temporary), size)
        with Graphs(folder / "graph.h5") as graphs:
            yield {head: open_setting(folder, graphs, head, epochs) for head in heads}


def open_setting(folder: Path, graphs: Graphs, head: str, epochs: int = ENDLESS) -> Setting:
    """Open a project's cache for training one of `HEADS`."""
    changed = folder / f"{head}.yaml"
    change_params(folder / "params.yaml", changed, (*HEADS[head], f"train.epochs={epochs}"))
    params = load(changed)
    cache = Features.open(folder / "features.zarr").beside(folder / "context.zarr")
    return Setting(folder, params, cache, graphs, choose_device(params.compute.device))


def make(folder: Path, size: Size) -> Path:
    """Draw photos and weights into an empty folder, then run prepare to graph."""
    side = size.side * 6 // 5  # of the photos, before resizing
    settings = [
        *random_backbone(folder, size.model),
        f"clusters={size.clusters}",
        f"extract.train.short_side={size.side}",
        f"compute.device={size.device}",
    ]
    make_project(folder, size.images * size.batches, 0, side, side, settings)
    params = load(folder / "params.yaml")
    index, features, context, graph = (
        str(folder / name) for name in ("index.csv", "features.zarr", "context.zarr", "graph.h5")
    )
    prepare(params, index, str(folder / "labels.csv"))
    extract(params, index, features)
    group = size.images * Features.open(features).size(0)
    change_params(folder / "params.yaml", folder / "params.yaml", [f"graph.group_patches={group}"])
    params = load(folder / "params.yaml")
    make_context(params, features, context)
    make_graph(params, features, context, graph)
    return folder
