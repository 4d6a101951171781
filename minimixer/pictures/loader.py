"""Batches of pictures, decoded by several processes ahead of the training that uses them.

Decoding a JPEG and cropping it takes milliseconds of a CPU core, so one process can't keep a GPU
busy. Each worker process decodes every n-th picture of an epoch into memory that all share, so
that no picture travels through a pipe. Which pictures, crops and flips: pure functions of (seed,
epoch, example number), so each worker finds them by itself, and any number of workers gives the
same bits.

>>> from minimixer.pictures.loader import Loader
>>> loader = Loader([f"{n}.jpg" for n in range(5)], [0, 0, 1, 1, 1], size=32, batch_size=2, seed=7)
>>> len(loader), loader.order(0).tolist(), loader.order(1).tolist()
(3, [3, 4, 1, 0, 2], [1, 3, 0, 2, 4])

    with Loader(paths, labels, size=224, batch_size=512, workers=8) as loader:
        for epoch in range(10):
            for images, labels in loader.epoch(epoch):      # uint8 (B, 224, 224, 3), int64 (B,)
                ...
    print(f"{len(loader.skipped)} files could not be read", loader.skipped[:3])

A script that uses workers needs `if __name__ == "__main__":` around what it does: they are started
with "spawn" and import it. "fork" would copy a process with threads and a GPU, in whatever state.
"""

import contextlib
import multiprocessing
import os
import signal
import traceback
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing import heap, resource_tracker
from typing import Any

import numpy as np

from ..engine.checks import check_integer
from ..training.prefetch import Epoch
from .augment import INTERPOLATIONS, Recipe, crop_box
from .folders import BadPicture, import_pillow

Failures = list[tuple[int, str]]  # (row in the batch, why)


def _fill(
    rows: np.ndarray, recipe: Recipe, paths: Any, order: np.ndarray, epoch: int, start: int,
    worker: int = 0, workers: int = 1,
) -> Failures:  # fmt: skip
    """Put the examples order[start : start + len(rows)] into `rows`, of them those at positions
    worker, worker + workers, ... of the epoch."""
    failures = []
    for row in range((worker - start) % workers, len(rows), workers):
        example = int(order[start + row])
        try:
            rows[row] = recipe.picture(paths[example], epoch, example)
        except BadPicture as error:
            failures.append((row, str(error)))
    return failures


class LoaderError(RuntimeError):
    """A process that decodes has ended, or lacks memory, or not one picture could be decoded."""


class Loader:
    """Pictures in batches: for images, labels in loader.epoch(n).

    paths (N) and labels, integers (N,), as of `find_images`. With `train`, a new order, crop and
    flip (unless `flip` is False) for each epoch, and `layers` of RandAugment at `magnitude`;
    without, the order as it is and the centre of each picture, by `interpolation` ("bilinear" or
    "bicubic"). `workers` processes decode, or with 0 this one. The last batch may be smaller (with
    `drop_last` it is left out then), and so is one with a file that can't be decoded, down to none:
    `skipped` lists each such (path, reason) once.
    The workers live until `close`, the end of a `with`, or an epoch that was not walked to its end.
    part (rank, ranks): of each batch only this rank's part is decoded and comes (parallel/).
    ValueError for empty or unequal lists and for numbers out of range.
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], labels: Any, size: int, batch_size: int,
        seed: int = 0, train: bool = True, workers: int = 0,
        scale: tuple[float, float] = (0.05, 1.0), layers: int = 0, magnitude: float = 10,
        flip: bool = True, drop_last: bool = False, part: tuple[int, int] = (0, 1),
        interpolation: str = "bilinear",
    ):  # fmt: skip
        self.paths: list[str] = [os.fsdecode(path) for path in paths]
        self.labels: np.ndarray = np.asarray(labels)
        if not self.paths or self.labels.shape != (len(self.paths),):
            met = f"{len(self.paths)} paths and labels {self.labels.shape}"
            raise ValueError(f"Loader: needs as many labels as paths, at least one; got {met}")
        if self.labels.dtype.kind not in "iu":
            raise TypeError(f"Loader: labels must be integers, not {self.labels.dtype}")
        self.labels = self.labels.astype(np.int64)
        self.workers: int = check_integer("workers", workers, 0, 1024)
        crop_box(1, 1, 0, 0, 0, scale)  # for its ValueError, here rather than in a worker
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"Loader: interpolation must be bilinear or bicubic: {interpolation}")
        if not magnitude >= 0:
            raise ValueError(f"Loader: magnitude must be 0 or more, not {magnitude}")
        self.recipe: Recipe = Recipe(
            size=check_integer("size", size, 1, 4096),
            batch_size=min(check_integer("batch_size", batch_size, 1, 1 << 63), len(self.paths)),
            seed=check_integer("seed", seed, 0, (1 << 64) - 1),
            train=bool(train),
            scale=scale,
            layers=check_integer("layers", layers, 0, 100),
            magnitude=magnitude,
            flip=bool(flip),
            rank=check_integer("rank", part[0], 0, part[1] - 1),
            ranks=part[1],
            interpolation=interpolation,
        )
        self.drop_last: bool = bool(drop_last)
        self.skipped: list[tuple[str, str]] = []
        self._skipped_paths: set[str] = set()
        self._team: _Team | None = None
        self._busy = False

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full, rest = divmod(len(self.paths), self.recipe.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def order(self, epoch: int) -> np.ndarray:
        """The numbers of the examples in the order of `epoch`: int64 (N,)."""
        return self.recipe.order(epoch, len(self.paths))

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("Loader: say which epoch: `for images, labels in loader.epoch(0)`")

    def epoch(self, epoch: int, start: int = 0) -> Epoch:
        """The batches of `epoch` from number `start` on: images uint8 (B, size, size, 3), labels
        int64 (B,); B is 0 for a batch of which nothing can be decoded. One epoch at a time.
        LoaderError if a worker dies or fails, if there is too little memory to share with them, or
        if nothing of the whole epoch could be decoded (where parts are all that there is);
        ImportError without Pillow."""
        import_pillow()
        epoch = check_integer("epoch", epoch, 0, (1 << 64) - 1)
        start = check_integer("start", start, 0, len(self))
        return Epoch(self._epoch(epoch, start), len(self) - start)

    def _epoch(self, epoch: int, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if self._busy:
            raise RuntimeError("Loader: another epoch is under way; walk to its end or close() it")
        self._busy, finished, empty, reason = True, False, True, ""
        order = self.order(epoch)
        try:
            for index, images, failures in self._images(order, epoch, start):
                begin, end = self.recipe.rows(index, len(order))
                examples = order[begin:end]
                for row, reason in failures:
                    self._skip(self.paths[examples[row]], reason)
                if failures:
                    failed = [row for row, _ in failures]
                    images, examples = np.delete(images, failed, 0), np.delete(examples, failed)
                empty = empty and not len(images)
                yield images, self.labels[examples]
            finished = True
        finally:  # also on break and Ctrl-C: workers amid an epoch that nobody wants are ended
            self._busy = False
            if not finished:
                self.close()
        if empty and not start and self.recipe.ranks == 1:
            raise LoaderError(f"Loader: no picture could be decoded; the last one: {reason}")

    def _images(
        self, order: np.ndarray, epoch: int, start: int
    ) -> Iterator[tuple[int, np.ndarray, Failures]]:
        if not self.workers:
            size = self.recipe.size
            for index in range(start, len(self)):
                begin, end = self.recipe.rows(index, len(order))
                images = np.zeros((end - begin, size, size, 3), np.uint8)
                yield index, images, _fill(images, self.recipe, self.paths, order, epoch, begin)
            return
        if self._team is None or self._team.process != os.getpid():  # a forked one needs its own
            self._team = _Team(self.recipe, self.paths, self.workers)
        team = self._team
        for index in range(start, min(start + team.ahead, len(self))):
            team.ask(epoch, index)
        for index in range(start, len(self)):
            images, failures = team.receive(index)
            if index + team.ahead < len(self):
                team.ask(epoch, index + team.ahead)
            yield index, images, failures

    def _skip(self, path: str, reason: str) -> None:
        if path not in self._skipped_paths:
            self._skipped_paths.add(path)
            self.skipped.append((path, reason))

    def close(self) -> None:
        """End the workers. A later epoch starts new ones."""
        if self._team is not None:
            self._team.end()
            self._team = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


# ---- the processes ------------------------------------------------------------------------------


class _Team:
    """Processes that fill batches. Each has a pipe of its own for a few numbers either way, with
    no lock that a dying one could take along; pictures come in memory that has no name, so none
    is left behind even by kill -9."""

    def __init__(self, recipe: Recipe, paths: list[str], workers: int):
        context = multiprocessing.get_context("spawn")
        self.count, self.recipe = len(paths), recipe
        most = -(-recipe.batch_size // recipe.ranks)  # pictures of a batch
        self.ahead = 2 + -(-2 * workers // most)  # small batches: two pictures a worker
        memory = _shared(self.ahead * most * recipe.size**2 * 3)
        self._slots = _as_slots(memory, recipe)
        names = b"\0".join(map(os.fsencode, paths))
        text = _shared(len(names))
        text.buffer[:] = names
        self._members: list[tuple[Any, Any]] = []
        self.process = os.getpid()
        # Also when Python exits.
        self.end = weakref.finalize(self, _end, self._members, self.process)
        # Ctrl-C reaches all processes of a terminal; held back while these start, it stays so for
        # them, and the one that reads ends them.
        masked = hasattr(signal, "pthread_sigmask")
        if masked:  # first what Python starts beside them, as it ends the holding back
            resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masked else set()
        try:
            for worker in range(workers):
                ours, theirs = context.Pipe()
                arguments = (theirs, recipe, text, memory, worker, workers)
                process = context.Process(target=_work, args=arguments, daemon=True)
                process.start()
                theirs.close()  # so that our end hears when the process is gone
                self._members.append((process, ours))
        finally:
            if masked:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def ask(self, epoch: int, index: int) -> None:
        """Let all begin batch `index`, once they have done what was asked before."""
        for process, pipe in self._members:
            try:
                pipe.send((epoch, index))
            except OSError:
                raise _death(process) from None

    def receive(self, index: int) -> tuple[np.ndarray, Failures]:
        """Wait for a batch, the one that was asked for first: (a copy of it, failures)."""
        failures: Failures = []
        for process, pipe in self._members:
            try:
                found = pipe.recv()
            except (EOFError, OSError):
                raise _death(process) from None
            if isinstance(found, str):
                raise LoaderError(f"Loader: a worker failed:\n{found}")
            failures += found
        begin, end = self.recipe.rows(index, self.count)
        return self._slots[index % self.ahead, : end - begin].copy(), sorted(failures)


def _shared(size: int) -> Any:
    """Memory for all processes, whose `buffer` is all zeros. What there is too little of is found
    out here: at the first write the system would end the process with "Bus error"."""
    try:
        memory = heap.Arena(size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(memory.fd, 0, size)
    except OSError as error:
        raise LoaderError(
            f"Loader: no {size / 2**20:.1f} MiB of memory to share with the workers ({error}): "
            "make /dev/shm larger (docker run --shm-size=8g), or take smaller batches or 0 workers"
        ) from None
    return memory


def _as_slots(memory: Any, recipe: Recipe) -> np.ndarray:
    shape = (-1, -(-recipe.batch_size // recipe.ranks), recipe.size, recipe.size, 3)
    return np.frombuffer(memory.buffer, np.uint8).reshape(shape)


def _death(process: Any) -> LoaderError:
    process.join(5)
    return LoaderError(
        f"Loader: a worker ended (exit code {process.exitcode}; -9 is often too little memory). "
        "Try fewer workers, or 0; a script that uses them needs `if __name__ == '__main__':`"
    )


def _end(members: list[tuple[Any, Any]], owner: int) -> None:
    if os.getpid() != owner:  # a forked process must leave its parent's workers alone
        return
    for process, pipe in members:
        process.terminate()
        pipe.close()
    for process, _ in members:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


def _work(pipe: Any, recipe: Recipe, text: Any, memory: Any, worker: int, workers: int) -> None:
    paths = [os.fsdecode(name) for name in text.buffer[:].split(b"\0")]
    slots = _as_slots(memory, recipe)
    last, order = -1, np.arange(0)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the other is gone
        while True:
            epoch, index = pipe.recv()
            found: Failures | str
            try:
                if epoch != last:
                    last, order = epoch, recipe.order(epoch, len(paths))
                begin, end = recipe.rows(index, len(paths))
                rows = slots[index % len(slots)][: end - begin]
                found = _fill(rows, recipe, paths, order, epoch, begin, worker, workers)
            except Exception:
                found = traceback.format_exc()
            pipe.send(found)
