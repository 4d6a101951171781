"""Batches prepared ahead: while a model computes, a thread makes the next two.

>>> from minimixer.training.prefetch import prefetched
>>> epoch = prefetched(lambda epoch, index: 10 * epoch + index, epoch=4, start=1, stop=4)
>>> len(epoch), list(epoch)
(3, [41, 42, 43])
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Epoch(Generator[Any, Any, None]):
    """The batches of an epoch, one after another; len() is how many there are from its start."""

    def __init__(self, batches: Iterator[Any], length: int):
        self._batches: Any = batches
        self._length = length
        self._over = False

    def __iter__(self) -> "Epoch":
        if self._over:  # a second loop would see nothing, and say nothing
            raise ValueError("this epoch is over: ask for the next, `batches.epoch(number)`")
        return self

    def __len__(self) -> int:
        return self._length

    def send(self, value: Any) -> Any:  # `for` asks Generator for __next__, which calls this
        try:
            return self._batches.send(value)
        except StopIteration:
            self._over = True
            raise

    def throw(self, *error: Any) -> Any:
        return self._batches.throw(*error)


def prefetched(batch: Callable[[int, int], Any], epoch: int, start: int, stop: int) -> Epoch:
    """batch(epoch, start) to batch(epoch, stop - 1), one after another. What goes wrong in the
    thread is raised here; it ends with the iterator, also when that is closed or forgotten."""
    return Epoch(_prefetch(batch, epoch, start, stop), stop - start)


def _prefetch(batch: Callable[[int, int], Any], epoch: int, start: int, stop: int) -> Iterator[Any]:
    pool = start_threads(1)
    process, ahead = os.getpid(), deque[Future[Any]]()
    try:
        for index in range(start, stop):
            if os.getpid() != process:  # a forked process lacks the thread
                pool = None
            # Two ahead: one ready, one in the making. More would only cost memory.
            while pool and len(ahead) < 3 and index + len(ahead) < stop:
                ahead.append(pool.submit(batch, epoch, index + len(ahead)))
            yield ahead.popleft().result() if pool else batch(epoch, index)
    finally:  # also on break and Ctrl-C: at most the batch in the making is waited for
        if pool:
            pool.shutdown(wait=True, cancel_futures=True)


def start_threads(count: int) -> ThreadPoolExecutor | None:
    """So many threads to give work to; None where there can be none, as in a browser."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="minimixer")
    try:
        pool.submit(int)
    except RuntimeError:
        return None
    return pool
