"""Work done in threads ahead of the one who uses it, in order and in bounded memory."""

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
    """Each item with ``function(item)``, in order, while the results after it are being made.

    Reads ahead where the caller uses the results, writes behind where the items take the time: they
    are drawn in the caller's thread. When the function or an item fails, the error comes out here;
    then, and when the iterator is closed, what has not begun is cancelled.

    Args:
        threads: how many calls run at once.
        waiting: results made or in the making, besides the one that is asked for.
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
