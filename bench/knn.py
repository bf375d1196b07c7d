"""Nearest neighbours by cosine: exact FAISS, blocked torch, FAISS's inverted file, our cells."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import click
import faiss
import numpy as np
import torch

from bench.timing import Timing, machine, show, side_by_side
from cache.features import Features
from pipeline.device import choose_device, hardware_bfloat16
from pipeline.features.whitening import unit_rows
from pipeline.graph.cells import (
    SAMPLE_PER_CELL,
    cell_count,
    coarse_centres,
    probes_for,
    search_cells,
)
from pipeline.graph.knn import not_self, recall, top

Search = Callable[[int], np.ndarray]  # k -> ids (queries, k or k + 1), self among the latter
BLOCK = 4096  # queries in one matrix product of the blocked search
PART = 32768  # rows assigned to their cells at a time


class Method(NamedTuple):
    """A way to search, with what preparing it took."""

    name: str
    build_s: float
    search: Search


@click.command()
@click.option("--sizes", default="10000,100000,1000000", show_default=True, help="Rows N.")
@click.option("--ks", default="32,256", show_default=True, help="Neighbours k.")
@click.option("--channels", default=384, show_default=True, help="C.")
@click.option("--queries", default=4000, show_default=True, help="Rows that search, of the N.")
@click.option("--target", default=0.95, show_default=True, help="Recall of the approximate ones.")
@click.option("--repeats", default=5, show_default=True, help="Counted runs.")
@click.option(
    "--features", default=None, help="A feature cache to take the rows from (level last)."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
def main(
    sizes: str,
    ks: str,
    channels: int,
    queries: int,
    target: float,
    repeats: int,
    features: str | None,
    device: str,
) -> None:
    """Time searches side by side, and say what all N rows would take at that rate.

    The rows are drawn like patches (concepts, shifted in each image) unless a cache is given.
    Recall is against exact FAISS. The approximate searches look into as many cells as the target
    needs on a second sample of queries.
    """
    where = choose_device(device)
    rows = []
    for n in map(int, sizes.split(",")):
        points = _cached(features, n) if features else synthetic_rows(n, channels)
        asked = np.sort(np.random.default_rng(1).choice(n, min(queries, n), replace=False))
        for k in map(int, ks.split(",")):
            rows += _measure(points, asked, k, target, repeats, where)
    show("knn", {**machine(where), "queries": queries, "target": target}, rows)


def _measure(
    points: np.ndarray, asked: np.ndarray, k: int, target: float, repeats: int, where: torch.device
) -> list[dict]:
    gpu = where.type == "cuda"
    exact = _others(top(points[asked], points, k + 1, gpu=gpu)[0], asked, k)
    methods = [
        Method("FAISS, exact", 0.0, lambda k: top(points[asked], points, k + 1, gpu=gpu)[0]),
        _torch("torch, float32", points, asked, torch.float32, where),
    ]
    if hardware_bfloat16(where):
        methods.append(_torch("torch, bfloat16", points, asked, torch.bfloat16, where))
    if cell_count(len(points)) > 1:
        methods += _approximate(points, asked, k, target, gpu=gpu)
    seconds = side_by_side({m.name: lambda m=m: m.search(k) for m in methods}, repeats)  # type: ignore[misc]
    return [
        {
            "N": len(points),
            "k": k,
            "search": method.name,
            "recall": recall(_others(method.search(k), asked, k), exact),
            "queries": len(asked),
            "seconds": Timing.of(seconds[method.name]),
            "build s": method.build_s,
            "all N, s": method.build_s
            + Timing.of(seconds[method.name]).median * len(points) / len(asked),
        }
        for method in methods
    ]


def _others(found: np.ndarray, asked: np.ndarray, k: int) -> np.ndarray:
    return found if found.shape[1] == k else found[not_self(found, asked)].reshape(-1, k)


def _torch(
    name: str, points: np.ndarray, asked: np.ndarray, dtype: torch.dtype, where: torch.device
) -> Method:
    start = time.perf_counter()
    base = torch.from_numpy(points).to(where, dtype)

    def search(k: int) -> np.ndarray:
        found = [
            (base[torch.from_numpy(some).to(where)] @ base.T).topk(k + 1, dim=1).indices
            for some in np.array_split(asked, -(-len(asked) // _block(len(points))))
        ]
        return torch.cat(found).cpu().numpy()

    return Method(name, time.perf_counter() - start, search)


def _block(n: int) -> int:
    """Queries of one product: at most `BLOCK`, and at most 2 GB of cosines."""
    return max(1, min(BLOCK, (2 << 30) // (4 * n)))


def _approximate(
    points: np.ndarray, asked: np.ndarray, k: int, target: float, *, gpu: bool
) -> list[Method]:
    """Our cells and FAISS's inverted file, with the same centres and as many of them searched.

    How many, other queries tell than those that are timed, so that their recall is no fit.
    """
    start = time.perf_counter()
    cells = Cells(points, gpu=gpu)
    ours = time.perf_counter() - start
    tried = np.random.default_rng(2).choice(len(points), len(asked), replace=False)
    exact = _others(top(points[tried], points, k + 1, gpu=gpu)[0], tried, k)
    probes = cells.probes(tried, exact, target)
    start = time.perf_counter()
    index = cells.inverted_file()
    index.nprobe = probes
    built = time.perf_counter() - start + ours
    looked = f"{probes} of {len(cells.centres)}"
    return [
        Method(f"cells, {looked}", ours, lambda k: cells.search(asked, probes, k)),
        Method(
            f"FAISS IVF on the CPU, {looked}",
            built,
            lambda k: index.search(points[asked], k + 1)[1],
        ),
    ]


class Cells:
    """Rows kept by cell, as the graph stage keeps them, but in memory."""

    def __init__(self, points: np.ndarray, *, gpu: bool) -> None:
        """points : float32 (n, c), unit rows."""
        count = cell_count(len(points))
        generator = np.random.default_rng(0)
        sample = np.sort(generator.choice(len(points), count * SAMPLE_PER_CELL, replace=False))
        self.points, self.gpu = points, gpu
        self.centres = coarse_centres(points[sample], count, seed=0, gpu=gpu)
        parts = np.array_split(points, -(-len(points) // PART))
        found = [top(part, self.centres, 1, gpu=gpu)[0][:, 0] for part in parts]
        self.cells = np.concatenate(found)
        self.order = np.argsort(self.cells, kind="stable")
        self.ends = np.cumsum(np.bincount(self.cells, minlength=count))
        self.kept = points[self.order]

    def probes(self, queries: np.ndarray, exact: np.ndarray, target: float) -> int:
        """Cells to look into so that these queries (q,) find the target of their exact (q, k)."""
        ranked = np.argsort(-(self.points[queries] @ self.centres.T), axis=1, kind="stable")
        return probes_for(self.cells[exact], ranked, target)

    def search(self, asked: np.ndarray, probes: int, k: int) -> np.ndarray:
        """Ids (q, k) of the most similar rows in the cells that each query looks into."""
        rows = self.points[asked]
        probed, _ = top(rows, self.centres, probes, gpu=self.gpu)
        count = len(self.centres)
        return search_cells(rows, asked, probed, count, self._read, k, gpu=self.gpu)[0]

    def _read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        members = slice(self.ends[number - 1] if number else 0, self.ends[number])
        return self.order[members], self.kept[members]

    def inverted_file(self) -> faiss.IndexIVFFlat:
        """FAISS's own way to keep the rows by the same cells."""
        count, channels = self.centres.shape
        quantiser = faiss.IndexFlatIP(channels)
        quantiser.add(self.centres)
        index = faiss.IndexIVFFlat(quantiser, channels, count, faiss.METRIC_INNER_PRODUCT)
        index.add(self.points)
        return index


def synthetic_rows(n: int, channels: int, seed: int = 0) -> np.ndarray:
    """Unit rows float32 (n, channels) like patches of images of 1000: concepts, shifted in each."""
    generator = np.random.default_rng(seed)
    concepts = generator.standard_normal((200, channels), np.float32)
    spread = generator.standard_normal((32, channels), np.float32) / 6
    rows = np.empty((n, channels), np.float32)
    for start in range(0, n, 1000):
        count = min(1000, n - start)
        shift = 0.6 * generator.standard_normal((200, channels), np.float32)
        own = generator.choice(generator.choice(200, 12), count)
        within = generator.standard_normal((count, 32), np.float32) @ spread
        rows[start : start + count] = concepts[own] + shift[own] + within
    return unit_rows(rows)


def _cached(path: str, n: int) -> np.ndarray:
    features = Features.open(path)
    taken, total = [], 0
    for tile in range(len(features.tiles)):
        if total >= n:
            break
        taken.append(features.tokens("last", tile))
        total += len(taken[-1])
    if total < n:
        raise click.ClickException(f"{path} holds {total} patches: lower --sizes ({n})")
    return unit_rows(np.concatenate(taken)[:n].astype(np.float32))


if __name__ == "__main__":
    main()
