"""Timings that can be compared: cases side by side in one run, median with least and greatest."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch


class Timing(NamedTuple):
    """Seconds of repeated runs."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summary of single times in seconds."""
        return cls(statistics.median(seconds), min(seconds), max(seconds))

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.least:.4g} - {self.greatest:.4g})"


def side_by_side(cases: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every case, in turn (A, B, A, B, ...), so that drift of the machine cancels.

    Each case runs once before, uncounted. On a GPU the clock stops when the device is done.
    """
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            _settle()
            start = time.perf_counter()
            case()
            _settle()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> Timing:
    """Summary of the ratios of two cases, pair by pair."""
    return Timing.of([a / b for a, b in zip(above, below, strict=True)])


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Describe what a figure depends on: processor, threads, versions; the GPU if one is used."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    for package in ("torch", "timm", "faiss-gpu", "zarr", "numpy"):
        facts[package] = version(package)
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def show(name: str, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a Markdown table, then all of it as one line of JSON.

    Rows may lack columns; `Timing` and other values are shown as text, kept as numbers in JSON.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    click.echo(f"\n{name}: " + ", ".join(f"{key} {value}" for key, value in facts.items()) + "\n")
    click.echo("| " + " | ".join(columns) + " |")
    click.echo("|" + "---|" * len(columns))
    for row in rows:
        click.echo("| " + " | ".join(_text(row.get(column, "")) for column in columns) + " |")
    click.echo("\n" + json.dumps({"bench": name, **facts, "rows": list(rows)}))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
