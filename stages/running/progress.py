"""Progress with a rate and the time left, on the error stream so that results stay clean.

On a terminal a bar; elsewhere (a log, a pipe, a terminal that cannot move its cursor) a line every
ten seconds, and one at the end.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

T = TypeVar("T")

EVERY = 10.0  # seconds between two lines


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_pace(task))


def _pace(task: Task) -> str:
    """Rate since the task was begun, and the time left; what was done before does not count."""
    done, elapsed = task.completed - task.fields["before"], task.elapsed or 0.0
    if done <= 0 or elapsed <= 0:
        return ""
    rate, left = done / elapsed, (task.total or 0) - task.completed
    text = f"{rate:.2f} {task.fields['unit']}/s"
    return text if left <= 0 else f"{text}, {duration(left / rate)} left"


def duration(seconds: float) -> str:
    """Seconds as people say them: ``8 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class _Bar(Progress):
    """Rich's display, or lines where nothing can be drawn over.

    A task that is added with ``completed`` was done so far by a former run.
    """

    def __init__(self, console: Console) -> None:
        self._lines = not console.is_terminal or console.is_dumb_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
        super().__init__(*columns, console=console, disable=self._lines)

    def add_task(
        self,
        description: str,
        start: bool = True,
        total: float | None = 100.0,
        completed: int = 0,
        visible: bool = True,
        **fields: Any,
    ) -> TaskID:
        return super().add_task(
            description, start, total, completed, visible, **{"before": completed, **fields}
        )

    def __enter__(self) -> _Bar:
        self._beat = _beat(self._say) if self._lines else None
        if self._beat:
            self._beat.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._beat:
            self._beat.__exit__(*error)
            if error[0] is None:
                self._say()

    def _say(self) -> None:
        for task in self.tasks:
            count = f"{task.completed:g} of {task.total or 0:g} {task.fields['unit']}s"
            pace = _pace(task) or f"for {duration(task.elapsed or 0)}"
            print(f"{task.description}: {count}, {pace}", file=sys.stderr, flush=True)


@contextmanager
def _beat(say: Callable[[], None]) -> Iterator[None]:
    """Call what says something every ten seconds, from a thread of its own."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(EVERY):
            say()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def alive(description: str) -> Iterator[None]:
    """Say every ten seconds that something of unknown progress is at work, and since when."""
    began = time.monotonic()

    def say() -> None:
        elapsed = duration(time.monotonic() - began)
        print(f"{description}: at work for {elapsed}", file=sys.stderr, flush=True)

    with _beat(say):
        yield


def bar() -> _Bar:
    """A progress display: description, bar, count, rate, time left.

    Tasks are added with ``unit="image"`` or the like, and ``completed``, what a former run did.
    """
    return _Bar(Console(stderr=True))


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
