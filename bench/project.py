"""A project to measure on: drawn photos, a ViT of random weights, artefacts by the real stages."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from bench.drawn import change_params, make_project, random_backbone
from cache.features import Features
from cache.graphs import Graphs
from pipeline.device import choose_device
from pipeline.head.training import Batch
from stages import extract, graph, params, prepare
from stages.train import load_batch, with_context

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


class Size(NamedTuple):
    """How large a project is, and where it computes; the choices of params.yaml otherwise."""

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
class Project:
    """Paths of what the stages have made, in one folder."""

    folder: Path

    @property
    def index(self) -> str:
        """The index of images."""
        return str(self.folder / "index.csv")

    @property
    def features(self) -> str:
        """The feature cache."""
        return str(self.folder / "features.zarr")

    @property
    def graph(self) -> str:
        """The graph file."""
        return str(self.folder / "graph.h5")


@dataclass(frozen=True)
class Setting:
    """All that the steps of one head need."""

    project: Project
    chosen: params.Params
    features: Features
    graphs: Graphs
    device: torch.device

    def load(self, round_: int, group: int) -> Batch:
        """Tokens and kernel of one group, on the CPU."""
        return load_batch(self.chosen, self.features, self.graphs, round_, group)


@contextmanager
def opened(size: Size, heads: Sequence[str], epochs: int = ENDLESS) -> Iterator[dict[str, Setting]]:
    """Make a project in a temporary folder, and open it for training each of these heads."""
    with tempfile.TemporaryDirectory() as folder:
        project = make(Path(folder), size)
        with Graphs(project.graph) as graphs:
            yield {head: open_setting(project, graphs, head, epochs) for head in heads}


def open_setting(project: Project, graphs: Graphs, head: str, epochs: int = ENDLESS) -> Setting:
    """Open a project's cache for training one of `HEADS`."""
    changed = project.folder / f"{head}.yaml"
    settings = (*HEADS[head], f"train.epochs={epochs}")
    change_params(project.folder / "params.yaml", changed, settings)
    chosen = params.load(changed)
    device = choose_device(chosen.compute.device)
    features = with_context(Features.open(project.features), graphs)
    return Setting(project, chosen, features, graphs, device)


def make(folder: Path, size: Size) -> Project:
    """Draw photos and weights into an empty folder, then run prepare, extract and graph."""
    project = Project(folder)
    side = size.side * 6 // 5  # of the photos, before resizing
    make_project(folder, size.images * size.batches, 0, side, side, _settings(folder, size))
    chosen = ["--params", str(folder / "params.yaml")]
    index = ["--index", project.index]
    features = ["--features", project.features]
    labels = ["--labels", str(folder / "labels.csv")]
    _run(prepare.main, [*chosen, "--out", project.index, *labels])
    _run(extract.main, [*chosen, *index, "--out", project.features])
    _run(graph.main, [*chosen, *features, "--out", project.graph])
    return project


def _settings(folder: Path, size: Size) -> list[str]:
    weights = random_backbone(folder, size.model)
    return [
        f"datasets.drawn={{root: {folder / 'photos'}, train: train, eval: train}}",
        f"backbones.random={{model: {size.model}, weights: {weights}}}",
        "backbone=random",
        f"clusters={size.clusters}",
        f"extract.short_side={size.side}",
        f"graph.group_images={size.images}",
        "graph.rounds=1",
        f"compute.device={size.device}",
    ]


def _run(stage: click.Command, arguments: list[str]) -> None:
    stage.main(arguments, standalone_mode=False)
