"""Bytes, hours and cost of whole data sets, by arithmetic from measured or assumed rates."""

from __future__ import annotations

from typing import NamedTuple

import click
import numpy as np

from bench.timing import show

IMAGES_PER_STEP = 16
LEVELS = 3
ROUNDS = 2
NEIGHBOURS = 0.006  # graph.k: of the patches of a group
SYMMETRIC = 1.33  # edges of the symmetric graph for each directed one, as found on photos
PIXEL_EDGES = 15  # of a patch in the pixel graph, as found on photos


class Dataset(NamedTuple):
    """Images of both splits, and the patches of one at patch side 16 and the usual size."""

    name: str
    train: int
    evaluated: int
    rows: int
    columns: int
    epochs: int  # the paper's, which has no COCO-Stuff

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return self.rows * self.columns


class Vit(NamedTuple):
    """Width and depth of a ViT."""

    name: str
    width: int
    depth: int


class Rates(NamedTuple):
    """What a CPU of 2 cores, or a GPU with its host, sustains.

    ViT, head and search in FLOP/s; decoding in images/s; and the price of an hour.
    """

    vit: float
    head: float
    search: float
    decode: float
    price: float


class Machine(NamedTuple):
    """So many of the same; training runs on one of them."""

    name: str
    rates: Rates
    units: int = 1


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


def graph_bytes(patches: int, group: int, rounds: int, k: float) -> float:
    """Bytes of the graph file: columns, float16 weights and a pointer of each row, pixel graphs.

    group: patches of a group, of which every patch has the share `k` as neighbours.
    """
    edge = np.min_scalar_type(group - 1).itemsize + 2
    pointer = 8
    feature = SYMMETRIC * k * group * edge + pointer
    return patches * (rounds * feature + PIXEL_EDGES * 4 + pointer)


def search_flops(patches: int, channels: int, candidates: float) -> float:
    """FLOPs of comparing every patch with so many candidates."""
    return 2.0 * patches * candidates * channels


@click.command()
@click.option("--cpu-vit", default=1.17e11, help="FLOP/s of the ViT on 2 cores, measured.")
@click.option("--cpu-head", default=0.75e11, help="FLOP/s of a step on 2 cores, measured.")
@click.option("--cpu-search", default=1.1e11, help="FLOP/s of exact search on 2 cores, measured.")
@click.option("--gpu-vit", default=2.0e14, help="FLOP/s of the ViT on a GPU, assumed.")
@click.option("--gpu-head", default=2.0e13, help="FLOP/s of a step on a GPU, assumed.")
@click.option("--gpu-search", default=2.0e13, help="FLOP/s of exact search on a GPU, assumed.")
@click.option("--cpu-decode", default=208.0, help="Images/s that 2 cores decode, measured.")
@click.option("--gpu-decode", default=1664.0, help="Images/s of the GPU's 16 cores, assumed.")
@click.option("--cpu-price", default=0.10, help="Price of an hour of 2 cores.")
@click.option("--gpu-price", default=2.50, help="Price of an hour of one GPU.")
def main(**rates: float) -> None:
    """Print bytes, hours and cost per data set and backbone, for 2 cores, a GPU and 16 GPUs.

    Hours of extraction, graphs and training. Extraction covers both splits, into float16 (int8
    takes half the bytes); training is on one machine, with a head of width 192 and two blocks.
    Graphs of groups of 16 images, searched exactly, two rounds.
    """
    cpu, gpu = (
        Rates(**{field: rates[f"{kind}_{field}"] for field in Rates._fields})
        for kind in ("cpu", "gpu")
    )
    machines = (Machine("2 cores", cpu), Machine("1 GPU", gpu), Machine("16 GPUs", gpu, 16))
    rows = [_row(data, vit, machines) for data in DATASETS for vit in VITS]
    show("scale", {m.name: f"{m.units * m.rates.vit:.3g} FLOP/s" for m in machines}, rows)


def _row(data: Dataset, vit: Vit, machines: tuple[Machine, ...]) -> dict:
    images, group = data.train + data.evaluated, IMAGES_PER_STEP * data.patches
    trained = data.train * data.patches
    search = ROUNDS * search_flops(trained, vit.width, group)
    step = head_flops(LEVELS * vit.width, width=192, mlp=384, depth=2, clusters=256)
    row: dict = {
        "data set": data.name,
        "backbone": vit.name,
        "patches, 1e6": images * data.patches / 1e6,
        "cache GB": cache_bytes(images * data.patches, vit.width, LEVELS, 2) / 1e9,
        "graph GB": graph_bytes(trained, group, ROUNDS, NEIGHBOURS) / 1e9,
    }
    for name, rates, units in machines:
        # Decoding runs beside the ViT: the slower of the two counts.
        extraction = images * max(vit_flops(vit, data.patches) / rates.vit, 1 / rates.decode)
        shared = [seconds / units / 3600 for seconds in (extraction, search / rates.search)]
        alone = data.epochs * trained * step / rates.head / 3600
        row[f"{name}, h"] = " + ".join(map(_two_digits, (*shared, alone)))
        row[f"{name}, cost"] = _two_digits((units * sum(shared) + alone) * rates.price)
    return row


def _two_digits(value: float) -> str:
    return np.format_float_positional(value, 2, fractional=False, trim="-")


if __name__ == "__main__":
    main()
