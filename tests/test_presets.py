"""Presets: whole params files, with the values of what they are named after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import yaml

from pipeline.head.objective import default_beta
from stages.settings.params import Params, load
from tests.conftest import REPOSITORY, Project

PRESETS = sorted((REPOSITORY / "presets").glob("*.yaml"))
SHIPPED = REPOSITORY / "params.yaml"

SIZES = ("s16", "b16", "l16")
# What the paper says of every benchmark, and its program where it is silent.
COMMON = {
    "eval.mapping": ["oracle"],  # as published tables
    "clusters": 256,
    "extract.blocks": ["first", "middle", "last"],
    "extract.final_norm": ["last"],
    "extract.train.views": 4,  # the program draws new ones at each step
    "extract.train.scale": [0.5, 2.0],
    "extract.train.flip": True,
    "extract.train.colour": 1.0,
    "graph.level": "last",
    "graph.scope": "batch",
    "graph.k": 256,
    "graph.alpha": 0.3,
    "head.levels": ["first", "middle", "last"],
    "head.depth": 2,
    "head.mlp_hidden": 576,
    "head.orthogonal": True,
    "head.heads": 18,
    "head.qkv_bias": False,
    "head.last_bias": True,
    "train.start": "random",
    "train.epochs": 40,
    "train.lr": 0.001,
    "kmeans.spherical": False,
}
# And where the choices shipped are the paper's already.
ALREADY = {
    "graph.pixel": [{"k": 10, "weight": 2.0}, {"k": 5, "weight": 0.1}],
    "head.width": None,
    "head.head_dim": 64,
    "head.level_norm": False,
    "train.lr_end": 1e-5,
    "train.beta": None,
    "train.tau_start": 1.0,
    "train.tau_end": 0.3,
    "kmeans.whiten": None,
    "segment.temperature": None,
}
CRF = {"segment.crf": "program"}  # it scores its sliding protocol with it
SCORED = ("pascal_context_59", "cityscapes_27")  # by a head that was trained on ImageNet
RESIZED_CROPS = {
    "extract.train.views": 1,
    "extract.train.scale": None,
    "extract.train.area": [0.08, 1.0],
    "extract.train.colour": 0.0,
}
# Short side, crop and images of a batch; other values of single keys.
BENCHMARKS: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "pascal_context": (520, 480, 16, {}),
    "pascal_context60": (520, 480, 16, CRF),
    "cityscapes27": (1024, 768, 8, {}),
    "cityscapes19": (1024, 768, 8, CRF),
    "ade20k": (512, 512, 16, {"clusters": 512, "train.epochs": 20, **CRF}),
    "coco_stuff27": (520, 480, 16, {"train.epochs": 2, "extract.train.views": 1}),
    "imagenet": (520, 512, 16, RESIZED_CROPS | {"train.epochs": 5, "eval_on": list(SCORED)}),
}
# The entry of `datasets` that each is read by.
PLACES = {
    "pascal_context": "pascal_context_59",
    "pascal_context60": "pascal_context_60",
    "cityscapes27": "cityscapes_27",
    "cityscapes19": "cityscapes_19",
    "ade20k": "ade20k",
    "coco_stuff27": "coco_stuff_27",
    "imagenet": "imagenet",
}
MODELS = {
    "paper_s16": ("vit_small_patch16_384.augreg_in21k_ft_in1k", "ViT-S/16"),
    "paper_b16": ("vit_base_patch16_384.augreg_in21k_ft_in1k", "ViT-B/16"),
    "paper_l16": ("vit_large_patch16_384.augreg_in21k_ft_in1k", "ViT-L/16"),
    "dino_s16": ("vit_small_patch16_224.dino", "ViT-S/16 of DINO, whose keys make the graph"),
    "clip_b16": ("vit_base_patch16_clip_quickgelu_224.openai", "ViT-B/16 of CLIP"),
    "clip_l14": ("vit_large_patch14_clip_quickgelu_224.openai", "ViT-L/14 of CLIP"),
    "clip_l14_336": ("vit_large_patch14_clip_quickgelu_336.openai", "ViT-L/14 of CLIP at 336 px"),
}
KEYS = {  # the last block's keys in place of its output
    "extract.blocks": ["first", "middle"],
    "extract.final_norm": [],
    "extract.keys": True,
    "graph.level": "keys",
    "head.levels": ["first", "middle", "keys"],
    "kmeans.level": "keys",
}
EXACT = {
    **{f"pascal_context_{size}": ("pascal_context", f"paper_{size}") for size in SIZES},
    "pascal_context60_s16": ("pascal_context60", "paper_s16"),
    **{f"cityscapes27_{size}": ("cityscapes27", f"paper_{size}") for size in SIZES},
    "cityscapes19_s16": ("cityscapes19", "paper_s16"),
    "ade20k_s16": ("ade20k", "paper_s16"),
    "coco_stuff27_s16": ("coco_stuff27", "paper_s16"),
    "imagenet_s16": ("imagenet", "paper_s16"),
    "pascal_context_dino_s16": ("pascal_context", "dino_s16"),
    **{
        f"pascal_context_{name}": ("pascal_context", name)
        for name in ("clip_b16", "clip_l14", "clip_l14_336")
    },
}


def declared(name: str) -> dict[str, Any]:
    """All values by dotted key in which an exact preset differs from params.yaml."""
    benchmark, backbone = EXACT[name]
    short_side, crop, images, own = BENCHMARKS[benchmark]
    patch = 14 if "l14" in backbone else 16
    values = {
        "dataset": PLACES[benchmark],
        "backbone": backbone,
        **COMMON,
        "extract.train.short_side": short_side,
        "extract.train.crop": crop,
        "graph.group_patches": images * round(crop / patch) ** 2,
        **own,
        **(KEYS if backbone == "dino_s16" else {}),
    }
    shipped = leaves(yaml.safe_load(SHIPPED.read_text()))
    return {key: value for key, value in values.items() if shipped[key] != value}


def leaves(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Values by dotted key, without the entries of `datasets` and `backbones`."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict) and key not in ("datasets", "backbones"):
            found |= leaves(value, f"{above}{key}.")
        elif not isinstance(value, dict):
            found[f"{above}{key}"] = value
    return found


def test_there_are_presets() -> None:
    assert {path.stem for path in PRESETS} == {"paper", *EXACT}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_a_whole_params_file(path: Path) -> None:
    assert isinstance(load(path), Params)
    ours, shipped = (yaml.safe_load(file.read_text()) for file in (path, SHIPPED))
    assert list(ours) == list(shipped)
    assert list(leaves(ours)) == list(leaves(shipped))


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_preset_differs_in_what_is_declared_alone(name: str) -> None:
    ours, shipped = (
        yaml.safe_load(file.read_text()) for file in (REPOSITORY / f"presets/{name}.yaml", SHIPPED)
    )
    found, former = leaves(ours), leaves(shipped)
    assert {key: found[key] for key in found if found[key] != former[key]} == declared(name)
    assert {key: found[key] for key in ALREADY} == ALREADY
    benchmark, backbone = EXACT[name]
    places = (PLACES[benchmark], *(SCORED if benchmark == "imagenet" else ()))
    assert ours["datasets"] == {place: shipped["datasets"][place] for place in places}
    assert [entry["model"] for entry in ours["backbones"].values()] == [MODELS[backbone][0]]
    assert timm.is_model_pretrained(MODELS[backbone][0])


@pytest.mark.parametrize("name", ["pascal_context_s16", "ade20k_s16"])
def test_the_papers_beta_follows_from_k(name: str) -> None:
    params = load(REPOSITORY / f"presets/{name}.yaml")
    assert params.train.beta is None
    assert default_beta(params.clusters) == (0.08 if name.startswith("pascal") else 0.04)


def test_the_papers_values() -> None:
    params = load(REPOSITORY / "presets/paper.yaml")
    assert params.vit.model.startswith("vit_small_patch16_384.augreg_in21k")
    assert (params.clusters, params.graph.group_patches, params.graph.alpha) == (256, 14_400, 0.3)
    assert params.graph.k == pytest.approx(256 / 14_400, rel=0.02)
    assert [(p.k, p.weight) for p in params.graph.pixel] == [(10, 2.0), (5, 0.1)]
    assert params.head.levels == ["first", "middle", "last"] and params.head.width is None
    assert (params.head.depth, params.head.head_dim, params.head.mlp_hidden) == (2, 64, 576)
    assert params.head.orthogonal and params.train.start == "random"
    assert (params.train.epochs, params.train.lr, params.train.lr_end) == (40, 1e-3, 1e-5)
    assert (params.train.tau_start, params.train.tau_end, params.train.beta) == (1.0, 0.3, None)
    assert params.used_levels == {"first", "middle", "last"}


def test_the_papers_choices_run(project: Project) -> None:
    paper = yaml.safe_load((REPOSITORY / "presets/paper.yaml").read_text())
    for section in ("graph", "head", "train", "kmeans", "segment"):
        project.set(section, paper[section])
    for key, value in {"head.head_dim": 16, "train.epochs": 1, "graph.k": 0.1}.items():
        project.set(key, value)
    project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval")


def test_imagenet_is_learned_from_in_part_and_scored_elsewhere() -> None:
    params = load(REPOSITORY / "presets/imagenet_s16.yaml")
    assert params.data.subset == 50_000  # of 1.28 million: 118 GB of features, not 3 TB
    assert [name for name, _ in params.eval_sets] == list(SCORED)
    assert params.segmented == ("pascal_context_59/val", "cityscapes_27/val")
    assert list(params.protocols_used) == ["crop320"]


@pytest.mark.parametrize("name", ["pascal_context_s16", "pascal_context_dino_s16", "imagenet_s16"])
def test_an_exact_preset_runs(project: Project, name: str) -> None:
    exact = yaml.safe_load((REPOSITORY / f"presets/{name}.yaml").read_text())
    for section in ("extract", "graph", "head", "train", "kmeans", "segment"):
        project.set(section, exact[section])
    small = {"extract.train.short_side": 96, "extract.train.crop": 64, "graph.group_patches": 48}
    small |= {"graph.k": 20, "head.head_dim": 16, "train.epochs": 4}
    for key, value in small.items():
        project.set(key, value)
    project.ok("prepare", "extract", "context", "graph", "train", "segment", "eval")
