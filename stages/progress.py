"""Progress bars with a rate, on the error stream so that results stay clean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.2f} {task.fields['unit']}/s")


def bar() -> Progress:
    """A progress display: description, bar, count, rate, time left.

    Tasks are added with ``unit="image"`` or the like. On a stream that is no terminal (a log of
    ``dvc repro``) only the finished bar is printed.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def track(
    items: Iterable[T], description: str, total: int | None = None, unit: str = "image"
) -> Iterator[T]:
    """Yield the items and show how many are done and at what rate (``unit`` per second)."""
    if total is None:
        total = len(items)  # type: ignore[arg-type]
    with bar() as progress:
        task = progress.add_task(description, total=total, unit=unit)
        for item in items:
            yield item
            progress.advance(task)
