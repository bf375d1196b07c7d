"""A training step on the cache against a step with the ViT and the graphs in it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from itertools import cycle
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from bench.project import Setting, Size, opened, project_options
from bench.timing import Timing, machine, ratios, show, side_by_side
from cache import features as store
from cache.backbone import facts, load_backbone
from cache.images import read_image
from cache.index import read_index
from pipeline.device import choose_device, use_bfloat16
from pipeline.features import context, vit
from pipeline.features.vit import Backbone, block_numbers, downsample
from pipeline.features.whitening import unit_rows
from pipeline.geometry import resize, tile_pixels
from pipeline.graph.kernel import block_diagonal, feature_graph, kernel, pixel_edges, to_torch
from pipeline.graph.knn import nearest, neighbour_count
from pipeline.head.training import Batch, tensor_cores, train_step
from stages.running.ahead import ahead
from stages.running.batches import READERS

CONTEXT = "context"
TAU = 0.7


@click.command()
@project_options
@click.option("--batches", default=2, show_default=True, help="In the cache.")
@click.option("--repeats", default=5, show_default=True, help="Timed runs of each case.")
@click.option("--steps", default=10, show_default=True, help="In a row, to see the waiting.")
def main(size: Size, heads: list[str], repeats: int, steps: int) -> None:
    """Time a training step on the cache and the same step online, side by side.

    The online step reads and decodes JPEG images (ahead, as the cached step reads the cache), runs
    the ViT, searches the batch's exact kNN graph, builds the pixel graphs and the kernel, and
    trains the head.
    """
    about = {**machine(choose_device(size.device)), **size._asdict()}
    rows: list[dict[str, Any]] = []
    with tensor_cores(), opened(size, heads) as settings:
        for name, setting in settings.items():
            rows += [{"head": name, **row} for row in _steps(setting, repeats, steps)]
    show("training", about, rows)


def _steps(setting: Setting, repeats: int, steps: int) -> Iterator[dict[str, Any]]:
    """Seconds of a step, cached and online, of what is in them; and the share of waiting."""
    step = trainer(setting)
    online = Online(setting)
    waited = [0.0]
    loaded = setting.batches(range(setting.params.train.epochs), waited)
    with closing(loaded), closing(online.photos()) as photos:
        pixels = next(photos).to(setting.device)
        levels = online.levels(pixels)
        batch = next(loaded)
        cases: dict[str, Callable[[], Any]] = {
            "online step": lambda: step(online.batch(next(photos).to(setting.device))),
            "cached step": lambda: step(next(loaded)),
            "ViT, context": lambda: online.levels(pixels),
            "graphs and kernel": lambda: online.kernel(levels, pixels),
            "head": lambda: step(batch),
            "load from the cache": lambda: setting.source().load((0, 0)),
        }
        seconds = side_by_side(cases, repeats)
        for name, taken in seconds.items():
            yield {
                "what": name,
                "seconds": Timing.of(taken),
                "to the cached step": ratios(taken, seconds["cached step"]),
                **peak(cases[name], setting.device),
            }
        share = _waiting(loaded, waited, step, steps)
    yield {"what": f"waiting for data, share of {steps} cached steps", "share": share}


def _waiting(
    loaded: Iterator[Batch], waited: list[float], step: Callable[[Batch], Any], steps: int
) -> float:
    """Share of the time of cached steps, one after the other, spent waiting for their batches."""
    step(next(loaded))  # what was loaded ahead before the clock starts is no merit
    start, before = time.perf_counter(), waited[0]
    for _ in range(steps):
        step(next(loaded))
    return (waited[0] - before) / (time.perf_counter() - start)


def trainer(setting: Setting) -> Callable[[Batch], dict[str, float]]:
    """A function that trains a fresh head by one step."""
    head, adam, beta = setting.trainee(setting.device)
    noise = torch.Generator(setting.device).manual_seed(0)
    bfloat16 = use_bfloat16(setting.params.train.precision, setting.device)

    def step(batch: Batch) -> dict[str, float]:
        return train_step(head, adam, batch, beta=beta, tau=TAU, generator=noise, bfloat16=bfloat16)

    return step


def peak(case: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Greatest memory of one run on a GPU, in GB; nothing on a CPU."""
    if device.type == "cpu":
        return {}
    torch.cuda.reset_peak_memory_stats(device)
    case()
    return {"peak GPU GB": torch.cuda.max_memory_allocated(device) / 1e9}


class Online:
    """The way without a cache: every batch from the image files, by the functions of the stages."""

    def __init__(self, setting: Setting) -> None:
        self.params, self.device = setting.params, setting.device
        self.manifest = setting.cache.manifest
        self.fit = context.Context(**(store.read_fit(setting.folder / "context.zarr") or {}))
        self.paths = [row.path for row in read_index(setting.folder / "index.csv")]
        tile = setting.cache.tiles[0]
        self.height, self.width = int(tile["height"]), int(tile["width"])
        entry = self.params.vit
        model = load_backbone(entry.model, entry.weights).to(self.device)
        self.backbone = Backbone(model, **facts(model))

    def photos(self) -> Generator[Tensor, None, None]:
        """Batches of pixels, float32 ``(B, 3, H, W)`` in [0, 1], read and decoded ahead."""
        size = (self.height, self.width)
        images = self.params.graph.group_patches // math.prod(self._grid())
        groups = [self.paths[i : i + images] for i in range(0, len(self.paths), images)]

        def read(paths: list[str]) -> Tensor:
            photos = [resize(read_image(path), *size) for path in paths]
            return torch.stack([tile_pixels(photo, (0, 0, *size), 1) for photo in photos])

        threads = 1 if self.device.type == "cpu" else READERS
        with closing(ahead(read, cycle(groups), threads=threads, waiting=threads + 1)) as decoded:
            yield from (pixels for _, pixels in decoded)

    def batch(self, pixels: Tensor) -> Batch:
        """Make the batch that the cache would hold of these pixels, on their device."""
        levels = self.levels(pixels)
        tokens = torch.cat([levels[level] for level in self.params.head.levels], dim=1)
        patches = len(tokens) // len(pixels)
        return Batch(tokens, [patches] * len(pixels), self.kernel(levels, pixels))

    def levels(self, pixels: Tensor) -> dict[int | str, Tensor]:
        """Tokens of the levels that a step needs: float32 ``(patches of all images, C)`` each."""
        blocks = block_numbers(self.params.extract.blocks, self.backbone.depth)
        autocast = torch.bfloat16 if self.manifest["bfloat16"] else None
        normed = self.manifest["normed"]
        arrays = vit.tokens(self.backbone, pixels, blocks, normed, keys=False, autocast=autocast)
        levels = {name: arrays[array] for name, array in self.manifest["levels"].items()}
        wanted = {*self.params.head.levels, self.params.graph.level}
        if CONTEXT in wanted:
            levels[CONTEXT] = self._in_context([levels[str(n)] for n in self.params.vit.context])
        return {level: levels[str(level)].flatten(0, 1) for level in wanted}

    def _in_context(self, levels: list[Tensor]) -> Tensor:
        """The level `context` ``(images, patches, C)`` of levels of that shape, as the cache's."""
        images = zip(*(level.cpu().numpy() for level in levels), strict=True)
        made = [context.apply(self.fit, image, *self._grid(), self.device) for image in images]
        return torch.from_numpy(np.stack(made)).to(self.device).float()

    def _grid(self) -> tuple[int, int]:
        return self.height // self.backbone.patch, self.width // self.backbone.patch

    def kernel(self, levels: Mapping[int | str, Tensor], pixels: Tensor) -> Tensor:
        """The kernel of the batch (Eq. 2-4), on the pixels' device."""
        choices = self.params.graph
        rows = unit_rows(levels[choices.level].cpu().numpy())
        k = neighbour_count(choices.k, len(rows))
        graph = feature_graph(*nearest(rows, k, gpu=self.device.type == "cuda"))
        settings = [(pixel.k, pixel.weight) for pixel in choices.pixel]
        colours = downsample(pixels, self.backbone.patch).cpu().numpy()
        grid = self._grid()
        pixel_graphs = block_diagonal([pixel_edges(rgb, *grid, settings) for rgb in colours])
        return to_torch(kernel(graph, pixel_graphs, choices.alpha), self.device)


if __name__ == "__main__":
    main()
