"""Results computed in threads ahead of their use, in order and in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, waiting: int
) -> Generator[tuple[Item, Result], None, None]:
    """Give each item with ``function(item)``, in order, while later results are being made.

    The items are drawn in the caller's thread. An error of the function or of an item is raised
    here; then, and when the iterator is closed, waiting calls are cancelled.

    Args:
        threads: how many calls run at once.
        waiting: results, finished or not, beyond the one that is asked for.
    """
    results: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                results.append((item, pool.submit(function, item)))
                if len(results) > waiting:
                    yield _next(results)
            while results:
                yield _next(results)
        finally:
            pool.shutdown(cancel_futures=True)


def _next(results: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    item, future = results.popleft()
    return item, future.result()
