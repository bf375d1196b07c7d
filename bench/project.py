"""A project to measure on: drawn photos, a ViT of random weights, artefacts by the real stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import timm
import torch
import yaml
from safetensors.torch import save_file

from bench.drawn import make_project
from cache import params
from stages import extract, graph, prepare

HEADS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"width": None, "mlp_hidden": 576, "level_norm": False},
}


class Size(NamedTuple):
    """How large a project is, and where it computes; the choices of params.yaml otherwise."""

    model: str = "vit_small_patch14_dinov2.lvd142m"
    side: int = 420  # px of the square photos after resizing: 30 x 30 patches of 14
    images: int = 16  # in a batch
    batches: int = 2  # in an epoch
    clusters: int = 256
    device: str = "auto"


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

    def choices(self, changes: Mapping[str, Mapping[str, Any]] | None = None) -> params.Params:
        """The project's parameters, some of them changed by section and key."""
        tree = yaml.safe_load((self.folder / "params.yaml").read_text())
        for section, values in (changes or {}).items():
            tree[section].update(values)
        return params.Params.model_validate(tree)


def make(folder: Path, size: Size) -> Project:
    """Draw photos and weights into an empty folder, then run prepare, extract and graph."""
    project = Project(folder)
    torch.manual_seed(0)
    model = timm.create_model(size.model, pretrained=False, num_classes=0, dynamic_img_size=True)
    save_file(model.state_dict(), folder / "weights.safetensors")
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
    weights = folder / "weights.safetensors"
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
