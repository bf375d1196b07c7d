"""Bytes, hours and cost of whole data sets, by arithmetic from measured or assumed rates."""

from __future__ import annotations

from typing import NamedTuple

import click

from bench.timing import show

IMAGES_PER_STEP = 16
LEVELS = 3
EDGE_BYTES = 4 + 2  # column and weight; a group's columns take 2 bytes


class Dataset(NamedTuple):
    """Images of both splits, and the patches of one at patch side 16 and the usual size."""

    name: str
    train: int
    evaluated: int
    rows: int
    columns: int
    epochs: int  # the paper's

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return self.rows * self.columns


class Vit(NamedTuple):
    """Width and depth of a ViT."""

    name: str
    width: int
    depth: int


class Machine(NamedTuple):
    """Sustained rates: ViT in FLOP/s, head in FLOP/s, search in FLOP/s; price of an hour."""

    name: str
    vit: float
    head: float
    search: float
    price: float
    measured: bool


DATASETS = (
    Dataset("Pascal Context", 4_998, 5_105, 30, 40, 40),
    Dataset("Cityscapes", 2_975, 500, 48, 96, 40),
    Dataset("ADE20K", 20_210, 2_000, 32, 43, 20),
    Dataset("COCO-Stuff", 118_287, 5_000, 30, 40, 10),
    Dataset("ImageNet-1k", 1_281_167, 50_000, 24, 32, 5),
)
VITS = (Vit("ViT-S/16", 384, 12), Vit("ViT-B/16", 768, 12), Vit("ViT-L/16", 1024, 24))


def vit_flops(vit: Vit, patches: int) -> float:
    """FLOPs of one image: projections and MLP 24 n C^2, attention 4 n^2 C in each block."""
    return vit.depth * (24 * patches * vit.width**2 + 4 * patches**2 * vit.width)


def head_flops(channels: int, width: int, mlp: int, depth: int, clusters: int) -> float:
    """FLOPs of the head for one patch, forward and backward (three times the forward)."""
    block = 2 * (4 * width**2 + 2 * width * mlp) + 4 * width * 64
    return 3 * (2 * channels * width + depth * block + 2 * width * clusters)


def cache_bytes(patches: int, channels: int, levels: int, value: int) -> int:
    """Bytes of the feature cache: tokens with `value` bytes each, and float16 colours."""
    return patches * (levels * channels * value + 3 * 2)


def search_flops(patches: int, channels: int, candidates: float) -> float:
    """FLOPs of comparing every patch with so many candidates."""
    return 2.0 * patches * candidates * channels


@click.command()
@click.option("--cpu-vit", default=1.0e11, help="FLOP/s of the ViT on 2 cores, measured.")
@click.option("--cpu-head", default=0.5e11, help="FLOP/s of a step on 2 cores, measured.")
@click.option("--cpu-search", default=1.0e11, help="FLOP/s of exact search on 2 cores, measured.")
@click.option("--gpu-vit", default=2.0e14, help="FLOP/s of the ViT on a GPU, assumed.")
@click.option("--gpu-head", default=2.0e13, help="FLOP/s of a step on a GPU, assumed.")
@click.option("--gpu-search", default=2.0e13, help="FLOP/s of exact search on a GPU, assumed.")
@click.option("--cpu-price", default=0.10, help="Price of an hour of 2 cores.")
@click.option("--gpu-price", default=2.50, help="Price of an hour of one GPU.")
def main(
    cpu_vit: float,
    cpu_head: float,
    cpu_search: float,
    gpu_vit: float,
    gpu_head: float,
    gpu_search: float,
    cpu_price: float,
    gpu_price: float,
) -> None:
    """Print bytes, hours and cost per data set and backbone, for 2 cores, a GPU and 16 GPUs.

    Extraction covers both splits; training is on one machine, with the default head. Graphs of
    groups of 16 images, searched exactly, two rounds.
    """
    machines = (
        Machine("2 cores", cpu_vit, cpu_head, cpu_search, cpu_price, True),
        Machine("1 GPU", gpu_vit, gpu_head, gpu_search, gpu_price, False),
        Machine("16 GPUs", 16 * gpu_vit, gpu_head, 16 * gpu_search, 16 * gpu_price, False),
    )
    rows = [_row(data, vit, machines) for data in DATASETS for vit in VITS]
    show("scale", {m.name: f"{m.vit:.3g} FLOP/s" for m in machines}, rows)


def _row(data: Dataset, vit: Vit, machines: tuple[Machine, ...]) -> dict:
    total = (data.train + data.evaluated) * data.patches
    trained = data.train * data.patches
    edges = 2 * trained * 1.7 * 0.006 * IMAGES_PER_STEP * data.patches
    row: dict = {
        "data set": data.name,
        "backbone": vit.name,
        "patches, 1e6": total / 1e6,
        "cache GB": cache_bytes(total, vit.width, LEVELS, 2) / 1e9,
        "int8 GB": cache_bytes(total, vit.width, LEVELS, 1) / 1e9,
        "graph GB": edges * 4 / 1e9,
    }
    for machine in machines:
        extract = vit_flops(vit, data.patches) * (data.train + data.evaluated) / machine.vit
        candidates = IMAGES_PER_STEP * data.patches
        graph = 2 * search_flops(trained, vit.width, candidates) / machine.search
        head = head_flops(LEVELS * vit.width, 192, 384, 2, 256)
        train = data.epochs * trained * head / machine.head
        hours = [seconds / 3600 for seconds in (extract, graph, train)]
        row[f"{machine.name}: extract + graph + train, h"] = " + ".join(f"{h:.2g}" for h in hours)
        row[f"{machine.name}: cost"] = sum(hours) * machine.price
    return row


if __name__ == "__main__":
    main()
