"""One large image through the predictors, up-sampling, the file of maps, and evaluation."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
import torch.nn.functional as F

from bench.timing import Timing, machine, ratios, show
from cache.segments import FORMAT, PREDICTORS, ImageMaps, Segments, write_maps
from cache.store import parts
from pipeline.device import choose_device
from pipeline.evaluation import count
from pipeline.features.whitening import unit_rows
from pipeline.geometry import Geometry, grid, plan
from pipeline.head.head import Head, initialise
from pipeline.head.kmeans import KMeans
from pipeline.head.kmeans import scores as kmeans_scores
from pipeline.segmenter import Level, Segmenter, runner_up

LEVELS = 3
CLASSES = 27
DIRECT = "direct interpolation"
WITHIN = "of it, "  # a part of the part before: it does not count towards the sum


class Case(NamedTuple):
    """An image to segment: its pixels and those of a patch, channels of a level, K, and where."""

    height: int
    width: int
    patch: int
    channels: int
    clusters: int
    device: torch.device

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return grid((0, 0, self.height, self.width), self.patch)

    @property
    def geometry(self) -> Geometry:
        """The whole image as one tile."""
        patches = self.grid[0] * self.grid[1]
        return Geometry(self.patch, min(self.height, self.width), most=patches)


Tokens = dict[Level, np.ndarray]  # float16 (patches, C) by level


class Clock(dict):
    """Seconds of each part, summed up by `part`, in the order in which they first came."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to a part."""
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self[name] = self.get(name, 0.0) + time.perf_counter() - start


@click.command()
@click.option("--height", default=1024, show_default=True, help="Of the image, in pixels.")
@click.option("--width", default=2048, show_default=True, help="Of the image, in pixels.")
@click.option("--patch", default=14, show_default=True, help="Side of a patch, in pixels.")
@click.option("--channels", default=384, show_default=True, help="C, of each of three levels.")
@click.option("--clusters", default=256, show_default=True, help="K.")
@click.option("--repeats", default=5, show_default=True, help="Images that count.")
@click.option("--device", default="auto", help="Of the head: auto, cpu or cuda.")
@click.option("--memory-of", default=None, hidden=True, help="Print the growth of one part's RSS.")
def main(
    height: int,
    width: int,
    patch: int,
    channels: int,
    clusters: int,
    repeats: int,
    device: str,
    memory_of: str | None,
) -> None:
    """Seconds and memory of segmenting and evaluating one image, part by part.

    Head and centres are random, tokens smooth and random. The model is loaded and has been used on
    a small image when memory counts as zero. The direct interpolation of all K maps at full size is
    what the up-sampling replaces.
    """
    case = Case(height, width, patch, channels, clusters, choose_device(device))
    if memory_of:
        click.echo(growth(case, memory_of))
        return
    seconds, equal = _timings(case, repeats)
    memory = {name: measured(case, name) for name in ("segmentation and evaluation", DIRECT)}
    rows = _rows(seconds, equal)
    rows += [{"part": f"memory of {name}", "MB above the model": memory[name]} for name in memory]
    facts = {"image": f"{width}x{height}", "grid": case.grid, "channels": channels}
    show("segmentation", {**facts, "clusters": clusters, **machine(case.device)}, rows)


def _rows(seconds: dict[str, list[float]], equal: float) -> list[dict]:
    counted = [times for name, times in seconds.items() if not name.startswith((DIRECT, WITHIN))]
    ours = [sum(times) for times in zip(*counted, strict=True)]
    rows: list[dict] = [
        {
            "part": name,
            "seconds per image": Timing.of(times),
            "share": ratios(times, ours) if name != DIRECT else "",
        }
        for name, times in seconds.items()
    ]
    rows[-1]["pixels equal"] = equal
    return [*rows, {"part": "all but the direct one", "seconds per image": Timing.of(ours)}]


def _timings(case: Case, repeats: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of each part of each image, and the share of pixels that equal the direct way's."""
    segmenter = random_segmenter(case)
    clocks, equal = [], []
    for number in range(repeats + 1):
        image = smooth_tokens(case, number)
        clock = Clock()
        ids, logits = whole_image(segmenter, image, case, clock)
        with clock.part(DIRECT):
            direct = direct_argmax(logits, case)
        equal.append(float((direct == ids).mean()))
        clocks.append(clock)
    seconds = {name: [clock[name] for clock in clocks[1:]] for name in clocks[0]}
    return seconds, min(equal)


def whole_image(
    segmenter: Segmenter, image: Tokens, case: Case, clock: Clock
) -> tuple[np.ndarray, torch.Tensor]:
    """Segment, store, read and count one image; the ids of `ours` and its logits."""
    found = plan(case.geometry, case.height, case.width)
    with clock.part("score maps"):
        scores = segmenter.scores([image], found)
    rows = torch.from_numpy(np.concatenate(list(image.values()), axis=1)).to(case.device).float()
    with torch.inference_mode(), clock.part(f"{WITHIN}head"):
        features = segmenter.head(rows, [len(rows)])[0].cpu().numpy()
    with clock.part(f"{WITHIN}scores of both K-means"):
        kmeans_scores(segmenter.kmeans["ours_kmeans"], features)
        kmeans_scores(segmenter.kmeans["kmeans"], image[LEVELS - 1])
    labels = {}
    for name in PREDICTORS:
        with clock.part(f"up-sampling of {name}"):
            labels[name] = segmenter.label_map(scores, name, found)
    (ours,), (functions,) = scores["ours"], scores["eigenfunctions"]
    truth = labels["ours"] % CLASSES
    with tempfile.TemporaryDirectory() as folder:
        clusters = dict.fromkeys(PREDICTORS, case.clusters)
        with clock.part("writing"):
            at_grid = functions.cpu().numpy(), *runner_up(ours)
            maps = ImageMaps(0, {"full": labels}, *at_grid)
            write_maps(folder, "0", [maps], clusters)
            manifest = {
                "format": FORMAT,
                "clusters": clusters,
                "images": [0],
                "variants": ["full"],
                "protocols": {},
            }
            parts.assemble(folder, ["0"], Path(folder) / "segments.h5", manifest)
        with Segments(Path(folder) / "segments.h5") as store:
            for name in PREDICTORS:
                with clock.part("evaluation: reading"):
                    ids = store.read(name, 0)
                with clock.part("evaluation: counting"):
                    count(ids, truth, case.clusters, CLASSES)
    return labels["ours"], ours


def direct_argmax(logits: torch.Tensor, case: Case) -> np.ndarray:
    """All K maps at the size of the image, and their argmax."""
    large = F.interpolate(logits.cpu()[None], (case.height, case.width), mode="bilinear")
    return large[0].argmax(dim=0).numpy()


def random_segmenter(case: Case) -> Segmenter:
    """A head of the default shape with initial weights, and centres of random directions."""
    shape = {
        "channels": [case.channels] * LEVELS, "clusters": case.clusters, "width": 192, "depth": 2,
        "head_dim": 64, "mlp_hidden": 384, "level_norm": True,
    }  # fmt: skip
    head = Head(**shape)  # type: ignore[arg-type]
    initialise(head, torch.Generator().manual_seed(0))
    generator = np.random.default_rng(0)
    fitted = {}
    for name, channels in ("ours_kmeans", head.width), ("kmeans", case.channels):
        drawn = generator.standard_normal((case.clusters, channels), np.float32)
        nothing = np.zeros(channels, np.float32), np.zeros((channels, 0), np.float32)
        fitted[name] = KMeans(unit_rows(drawn), *nothing, spherical=True)._asdict()
    manifest = {"head": {**shape, "levels": [*range(LEVELS)]}, "kmeans": {"level": LEVELS - 1}}
    return Segmenter({**manifest, "context": []}, head.state_dict(), fitted, case.device)


def smooth_tokens(case: Case, seed: int) -> Tokens:
    """Tokens of one image that vary as those of objects do: a coarse random field and noise."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = case.grid
    total = LEVELS * case.channels
    coarse = torch.randn(1, total, max(2, rows // 8), max(2, columns // 8), generator=generator)
    smooth = F.interpolate(coarse, case.grid, mode="bicubic")[0].flatten(1).T
    tokens = smooth + 0.2 * torch.randn(rows * columns, total, generator=generator)
    return dict(enumerate(np.split(tokens.half().numpy(), LEVELS, axis=1)))


def measured(case: Case, part: str) -> float:
    """Run `growth` in a process of its own."""
    options = [f"--{name}={value}" for name, value in case._asdict().items()]
    command = [sys.executable, "-m", "bench.segmentation", *options, "--memory-of", part]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise click.ClickException(ran.stderr)
    return float(ran.stdout.split()[-1])


def growth(case: Case, part: str) -> float:
    """MB (10^6 bytes) by which the peak RSS rises above the model that has seen a small image."""
    segmenter = random_segmenter(case)
    small = case._replace(height=8 * case.patch, width=8 * case.patch)
    _, logits = whole_image(segmenter, smooth_tokens(small, 0), small, Clock())
    direct_argmax(logits, small)
    image = smooth_tokens(case, 0)
    if part == DIRECT:
        logits = torch.randn(case.clusters, *case.grid)
    with suppress(OSError):  # the peak starts anew; where that cannot be, growth is a bound
        Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    if part == DIRECT:
        direct_argmax(logits, case)
    else:
        whole_image(segmenter, image, case, Clock())
    return round(_status("VmHWM") - before, 1)


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


if __name__ == "__main__":
    main()
