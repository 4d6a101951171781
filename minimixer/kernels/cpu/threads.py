"""Threads for NumPy: products side by side, and what keeps them out of each other's way.

NumPy lets go of Python's lock while it computes, so two threads can work at once. Two things spoil
that, and this file is about them. (Figures: two cores, a (6272, 128) @ (128, 512) product, GELU,
and a product back; 9.8 ms by the plain code.)

BLAS, which multiplies NumPy's matrices, has threads of its own, and OpenBLAS's keep their core busy
for a tenth of a second after each product, waiting for the next: GELU on two threads between two
products takes as long as on one. So while we have threads, BLAS is told to compute on the thread
that asks, and each of ours does products and all that lies between them on its own part: 6.0 ms.

Python's lock is passed on so slowly (some 50 us) that two threads in which operations of 10 us
alternate are slower than one: LayerNorm takes 1.20 ms on two, 0.76 ms on one. So short operations
are done in turns (`with turn`), by one thread, while the others multiply.

    run(task, count)    task(0) ... task(count - 1), side by side
    aside(task)         task(), at some time before `join()`: for work that nothing waits for

What a task computes depends on its number alone, not on who runs it nor when: it has the same bits
with one thread or eight, and however many BLAS may use.

>>> import numpy as np
>>> from minimixer.kernels.cpu.threads import run
>>> squares = np.zeros(4)
>>> def task(number):
...     squares[number] = number**2
>>> run(task, 4)
>>> squares
array([0., 1., 4., 9.])
"""

import contextvars
import ctypes
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from ...engine.aside import join_later

MOST_THREADS = 8  # beyond, they would wait for their turns
MOST_ASIDE = 4  # tasks put off at most, since each keeps arrays alive

turn: Any = threading.Lock()

# ---- BLAS on one thread -------------------------------------------------------------------------

# The functions that tell and set how many threads BLAS may use, as libraries name them.
_NAMES = [
    *[(f"{prefix}openblas_get_num_threads{suffix}", f"{prefix}openblas_set_num_threads{suffix}")
      for prefix in ("scipy_", "") for suffix in ("64_", "")],
    ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
    ("bli_thread_get_num_threads", "bli_thread_set_num_threads"),
]  # fmt: skip


@functools.cache
def _blas() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """Those of the library that NumPy was linked to; None if it is one that can't be told."""
    try:  # a name is looked for in this module, and in all that it is linked to
        # PyDLL: without letting go of Python's lock, which a busy thread would keep for 5 ms
        library = ctypes.PyDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]
    except (AttributeError, OSError):
        return None
    for get, set_count in _NAMES:
        if hasattr(library, get) and hasattr(library, set_count):
            return getattr(library, get), getattr(library, set_count)
    return None


class _BlasOnOneThread:
    """Within it BLAS computes on the thread that calls it. May be entered again, by any thread;
    entering returns how many threads of ours there may be."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entered = 0
        self.allowed = 1  # threads that BLAS had before
        self.limit: int | None = None

    def __enter__(self) -> int:
        functions = _blas()
        if functions is None:  # its threads go on as they are, and ours stay away
            return 1
        get_count, set_count = functions
        with self.lock:
            if self.entered == 0:
                self.allowed = get_count()
                set_count(1)
            self.entered += 1
            return min(self.allowed if self.limit is None else self.limit, MOST_THREADS)

    def __exit__(self, *exception: Any) -> None:
        functions = _blas()
        if functions is not None:
            _, set_count = functions
            with self.lock:
                self.entered -= 1
                if self.entered == 0:
                    set_count(self.allowed)


blas_on_one_thread: Any = _BlasOnOneThread()


def use_threads(count: int | None) -> None:
    """Use at most so many threads; None: as many as BLAS may, up to 8. No result changes by a bit.
    With a BLAS that can't be told (Apple's Accelerate) there is one, and BLAS has its own.
    ValueError if it is not a positive whole number."""
    if count is not None and not (isinstance(count, int) and count > 0):
        raise ValueError(f"use_threads: the count must be a positive whole number, got {count!r}")
    blas_on_one_thread.limit = count


def blas_threads() -> int | None:
    """How many BLAS may use; None if it can't be told."""
    functions = _blas()
    return functions and functions[0]()


def limit_blas(count: int) -> None:
    """BLAS, and so all of this, is to use at most so many: where processes share a machine."""
    functions = _blas()
    if functions is not None:
        get_count, set_count = functions
        set_count(min(get_count(), count))


# ---- our threads --------------------------------------------------------------------------------


@functools.cache
def _pool(count: int) -> ThreadPoolExecutor | None:
    """`count` threads, or as many as the system grants; None if it grants none, as in a browser."""
    pool, begin = ThreadPoolExecutor(count, thread_name_prefix="minimixer"), threading.Event()
    granted = 0
    try:  # all at once: later, a task might have been queued, and be run, when a start fails
        for _ in range(count):
            pool.submit(begin.wait)
            granted += 1
    except RuntimeError:
        begin.set()
        pool.shutdown()
        return _pool(granted) if granted else None
    begin.set()
    return pool


def _submit(threads: int, function: Callable[[], None]) -> Future | None:
    """To another of `threads` threads; np.errstate, a context variable, is there as it is here.
    None where there is none, or when Python is ending."""
    pool = _pool(threads - 1)
    try:
        return pool.submit(contextvars.copy_context().run, function) if pool else None
    except RuntimeError:
        return None


def run(task: Callable[[int], None], count: int) -> None:
    """task(number) for all numbers below `count`, each once, on this thread and others. After an
    error no more are begun, and it is raised when all threads have stopped."""
    numbers, lock = iter(range(count)), threading.Lock()

    def work() -> None:
        nonlocal numbers
        try:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                task(number)
        except BaseException:
            numbers = iter(())
            raise

    with blas_on_one_thread as threads:
        submitted = [_submit(threads, work) for _ in range(min(threads, count) - 1)]
        try:
            work()
        finally:  # one that has not begun yet is not needed any more
            helpers = [helper for helper in submitted if helper and not helper.cancel()]
            wait(helpers)
        for helper in helpers:
            helper.result()


class _Aside(threading.local):
    threads = 0  # how many there may be; 0: nothing was put aside

    def __init__(self) -> None:
        self.waiting: list[tuple[Future, Callable[[], None]]] = []


_aside = _Aside()


def aside(task: Callable[[], None]) -> None:
    """task(), on another thread if one is free, at the latest in `join()`; here and now if there is
    no other thread. It must write where nobody reads before that."""
    if not _aside.threads:
        _aside.threads = blas_on_one_thread.__enter__()
        join_later(join)
    _aside.waiting = [pair for pair in _aside.waiting if not _is_finished(pair[0])]
    if len(_aside.waiting) == MOST_ASIDE:
        _finish(*_aside.waiting.pop())  # the latest: the first is being done
    future = None if _aside.threads == 1 else _submit(_aside.threads, task)
    if future is None:
        task()
    else:
        _aside.waiting.append((future, task))


def join() -> None:
    """Come back when all that this thread put aside is done. backend.join calls it."""
    try:
        while _aside.waiting:
            _finish(*_aside.waiting.pop())  # the latest first: another thread begins at the front
    finally:
        if _aside.threads:
            wait([future for future, _ in _aside.waiting])  # after an error
            _aside.waiting.clear()
            _aside.threads = 0
            blas_on_one_thread.__exit__()


def _is_finished(future: Future) -> bool:
    return future.done() and future.exception() is None


def _finish(future: Future, task: Callable[[], None]) -> None:
    if future.cancel():  # nobody has begun
        task()
    else:
        future.result()


def _after_fork() -> None:
    """A forked process has none of its parent's threads, only their locks: made anew, as Python
    does with its own (`locked()` would not tell of one that was taken just now)."""
    turn._at_fork_reinit()  # type: ignore[attr-defined]
    blas_on_one_thread.lock._at_fork_reinit()  # type: ignore[attr-defined]
    _pool.cache_clear()
    _aside.waiting = [(Future(), task) for _, task in _aside.waiting]  # for `join` to do
    functions = _blas()
    if blas_on_one_thread.entered and not _aside.threads and functions is not None:
        _, set_count = functions
        set_count(blas_on_one_thread.allowed)
    blas_on_one_thread.entered = int(_aside.threads > 0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
