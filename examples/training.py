"""What train_mnist.py and finetune.py have in common: a run that is kept on disk. Their loops are
their own; they tell a Run what came of each step, and it shows progress, writes down what was
learned so far, and stops between two steps when it is asked to.

    run = Run(options, given, SETTINGS, world)             # checks the directory; recalls settings
    run.start(model, optimizer, steps, fingerprint)        # or goes on where the last one stopped
    with run.bar(total, done):
        for epoch in range(len(run.history), epochs):
            for images, labels in ...:
                run.add(len(labels), *train_step(images, labels))
                if run.interrupted:
                    return run.stop()
            run.end_row({"epoch": epoch + 1}, evaluate)    # of metrics.csv, and a checkpoint

With several processes (minimixer/parallel) each has a Run of its own. They add up what they learned
of a step, rank 0 alone writes files, and they stop after the same step.
"""

import argparse
import contextlib
import csv
import io
import itertools
import os
import shlex
import signal
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from options import Settings, dashes
from tqdm import tqdm

from minimixer import Mixer, backend, fetch, parallel, record
from minimixer.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from minimixer.files import replace_file
from minimixer.optim import Optimizer
from minimixer.parallel import World

LAG = 8  # steps that a GPU may be behind: it works on while Python prepares the next ones
# What a checkpoint holds beyond weights and optimizer; the numbers are of the row to come.
PROGRESS = {"settings": dict, "data": int, "step": int, "steps": int, "images": int,
            "loss_sum": float, "correct": int, "seconds": float, "waited": float,
            "history": list}  # fmt: skip


class Run:
    """One training run in the directory options.out: checkpoint.npz and metrics.csv there.

    ValueError or OSError, and nothing is changed, if results could not be kept there, or would
    overwrite those of an unfinished run; with options.resume if there is none to go on with, or
    one with other `settings` than those that were `given`. Else `options` gets its settings.
    """

    def __init__(
        self, options: argparse.Namespace, given: set[str], settings: Settings, world: World
    ):  # fmt: skip
        self.options, self.given, self.settings, self.world = options, given, settings, world
        self.out = Path(options.out)
        self.checkpoint = self.out / "checkpoint.npz"
        apart = settings.keys() | {"out", "workers"}  # may differ, or are compared by start()
        world.check_same(options={k: v for k, v in vars(options).items() if k not in apart})
        if world.rank == 0:
            self._prepare_directory()
        if options.resume:
            self._recall_settings()
        self.saved = options.resume  # is the checkpoint one of this run?
        self.step = 0  # the next one
        self._coming: deque[tuple[int, int, Any]] = deque()  # steps whose results were not read

    def start(self, model: Mixer, optimizer: Optimizer, steps: int, data: int) -> None:
        """Begin, or go on. `data` is a number that tells data sets apart."""
        self.model, self.optimizer = model, optimizer
        self.lag = 0 if model.device == "cpu" else LAG
        values = {name: getattr(self.options, name) for name in self.settings}
        self.progress = {"settings": values, "data": data, "step": 0, "steps": steps}
        self._begin_row()
        self.progress["history"] = []
        world = self.world
        world.check_same(
            settings=values, data=data, steps=steps, weights=model.buffer.values,
            code=parallel.code() if world.size > 1 else "",
        )  # fmt: skip
        if self.options.resume:
            if world.rank == 0:
                self.progress = load_checkpoint(self.checkpoint, model, optimizer)
            self.progress = world.share(self.progress)
            world.broadcast(model, optimizer)
            if self.progress["data"] != data or self.progress["steps"] != steps:
                raise ValueError(f"the data hold other images than those of the run in {self.out}")
            self.progress["settings"] = values  # the data may have moved
        self.step = self.progress["step"]
        self._signals, self.interrupted = StopSignal(world.rank == 0), False

    def _begin_row(self) -> None:
        self.progress.update(images=0, loss_sum=0.0, correct=0, seconds=0.0, waited=0.0)

    @contextlib.contextmanager
    def bar(self, images: int, done: int) -> Iterator[Any]:
        """Show progress: `done` of `images` were trained on before."""
        self._started = time.perf_counter() - self.progress["seconds"]
        with tqdm(
            total=images, initial=done, unit="img", unit_scale=True, dynamic_ncols=True
        ) as self._bar:
            yield self._bar

    def waiting(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The same, with the time taken that they let us wait."""
        batches = iter(batches)
        with contextlib.closing(batches):  # type: ignore[type-var]  # a generator
            while True:
                began = time.perf_counter()
                batch = next(batches, None)
                self.progress["waited"] += time.perf_counter() - began
                if batch is None:
                    return
                yield batch

    def add(self, size: int, loss: Any, correct: Any) -> None:
        """Step number `step` was made on `size` images of all ranks: this rank's share of their
        mean loss, and how many of its own were right. ValueError once it is seen that a loss was
        not finite. `interrupted` is set once it is seen that somebody, on any rank, has pressed
        Ctrl-C."""
        found = (np.asarray(x) if isinstance(x, (int, float)) else x for x in (loss, correct))
        self._coming.append((self.step, size, fetch(*found)))
        self.step += 1
        self._read(self.lag)

    def skip(self) -> None:
        """Step number `step` has no images. `interrupted` is set as by `add`."""
        self.step += 1
        self.interrupted = self.interrupted or self.world.any(self._signals.requested)

    def _read(self, most: int) -> None:
        """Take in results, the oldest first, until at most so many are still to come."""
        progress = self.progress
        while len(self._coming) > most:
            step, size, fetched = self._coming.popleft()
            each = self.world.gather([*fetched.results(), self._signals.requested])
            for rank, loss in enumerate(each[:, 0]):
                if not np.isfinite(loss):
                    where = f" on rank {rank}" if self.world.size > 1 else ""
                    raise self._diverged(f"the loss became {loss}{where}", step)
            loss, correct, requested = each.sum(axis=0).tolist()
            self.interrupted = self.interrupted or requested > 0
            progress["step"] = step + 1
            progress["images"] += int(size)
            progress["loss_sum"] += loss * size
            progress["correct"] += int(correct)
            progress["seconds"] = time.perf_counter() - self._started
            self._bar.update(size)
            self._bar.set_postfix(
                loss=f"{progress['loss_sum'] / progress['images']:.4f}",
                accuracy=f"{progress['correct'] / progress['images']:.2%}",
                refresh=False,
            )

    def end_row(self, first: dict[str, Any], evaluate: Callable[[], dict[str, Any]]) -> None:
        """Write a row of metrics.csv, and a checkpoint: `first`, then what training gave since the
        last row, what `evaluate()` says, and the time that training took."""
        self._read(0)
        progress = self.progress
        images, seconds = progress["images"], progress["seconds"]
        progress["history"].append({
            **first,
            "train_loss": progress["loss_sum"] / images if images else np.nan,
            "train_accuracy": progress["correct"] / images if images else np.nan,
            **evaluate(),
            "seconds": seconds,
            "images_per_second": images / seconds if images else 0.0,
        })  # fmt: skip
        self._begin_row()
        progress["step"] = self.step
        self.world.check_same(weights=self.model.buffer.values)  # or they have drifted apart
        try:
            self._save()
        except ValueError as error:  # weights that are not finite
            raise self._diverged(str(error), self.step - 1) from None
        self.saved = True
        self.write_metrics()
        self._started = time.perf_counter()

    def _save(self) -> None:
        if self.world.rank == 0:
            save_checkpoint(self.checkpoint, self.model, self.optimizer, self.progress)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of metrics.csv."""
        return self.progress["history"]

    def write_metrics(self) -> None:
        if self.world.rank == 0:
            write_rows(self.out / "metrics.csv", self.history)

    @property
    def trained(self) -> bool:
        """Has anything been learned so far?"""
        return bool(self.history or self.progress["images"] or self._coming)

    def stop(self) -> int:
        """Save all, say how to go on, and return the status to exit with."""
        self._read(0)
        self._bar.close()
        self.progress["step"] = self.step
        self._save()
        again = ["mpirun", "-n", str(self.world.size)] if self.world.size > 1 else []
        again += ["python", sys.argv[0], "--resume", "--out", str(self.out)]
        for name in sorted(self.given - self.settings.keys() - {"resume", "out"}):
            value = getattr(self.options, name)
            again += [dashes(name)] if value is True else [dashes(name), str(value)]
        print(
            f"stopped after step {self.step} of {self.progress['steps']}, saved in "
            f"{self.checkpoint}; to go on: {shlex.join(again)}"
        )
        return 130

    def _diverged(self, what: str, step: int) -> ValueError:
        kept = f"{self.checkpoint} keeps the last good state" if self.saved else "nothing was saved"
        clip = "" if self.options.clip else ", or --clip 1"
        return ValueError(
            f"{what} at step {step + 1}; {kept}; try a lower --lr{clip}, with another --out"
        )

    # ---- the directory --------------------------------------------------------------------------

    def _prepare_directory(self) -> None:
        """Find out before training whether results can be kept, and protect those of other runs."""
        out, checkpoint = self.out, self.checkpoint
        if self.options.resume:
            if not checkpoint.is_file():
                raise ValueError(f"--resume: there is no {checkpoint}")
        elif checkpoint.exists():
            try:
                progress = self._read_progress()
            except (ValueError, OSError):
                raise ValueError(
                    f"{checkpoint} is not from a run of this script; choose another --out to keep "
                    "it"
                ) from None
            if progress["step"] < progress["steps"]:
                raise ValueError(
                    f"{out} holds an unfinished run: --resume goes on with it, another --out keeps "
                    "it"
                )
        out.mkdir(parents=True, exist_ok=True)
        if (out / "metrics.csv").is_dir():
            raise ValueError(f"{out / 'metrics.csv'} is a directory; choose another --out")
        with tempfile.TemporaryFile(dir=out):
            pass

    def _read_progress(self) -> dict[str, Any]:
        """What the checkpoint says; ValueError if it is of another script or version."""
        progress = read_checkpoint(self.checkpoint)[0]["progress"]
        if not isinstance(progress, dict) or any(
            not isinstance(progress.get(key), kind) for key, kind in PROGRESS.items()
        ):
            raise ValueError(f"{self.checkpoint} was not written by this script")
        for name, (default, _) in self.settings.items():
            value = progress["settings"].get(name)
            if not isinstance(value, type(default)):
                raise ValueError(
                    f"{self.checkpoint} was not written by this script: its {name} is {value!r:.40}"
                )
        return progress

    def _recall_settings(self) -> None:
        """Take the settings of the run to resume; ValueError if others were asked for."""
        stored = self.world.share(self._read_progress()["settings"] if not self.world.rank else 0)
        for name in self.settings:
            if name.startswith("data") and name in self.given:
                continue  # the data may have moved; their number tells whether they are the same
            if name in self.given and getattr(self.options, name) != stored[name]:
                raise ValueError(
                    f"{dashes(name)} is {stored[name]!r} in the run to resume; leave it out"
                )
            setattr(self.options, name, stored[name])


class StopSignal:
    """Ctrl-C takes effect between two steps, when weights and progress belong together; also one
    that comes during a validation. A second one stops at once."""

    def __init__(self, tells: bool) -> None:
        self.requested, self.tells = False, tells
        signal.signal(signal.SIGINT, self.note)
        signal.signal(signal.SIGTERM, self.note)

    def note(self, number: int, frame: Any) -> None:
        self.requested = True
        signal.signal(number, signal.SIG_DFL)
        if self.tells:
            os.write(2, b"\nstopping after the next step; once more: at once\n")


def set_precision(model: Mixer, options: argparse.Namespace, given: set[str]) -> None:
    """--precision; unless it was asked for, float32 on a GPU that lacks it."""
    try:
        backend.check_precision(options.precision, model.device)
    except ValueError:
        if "precision" in given or options.resume:
            raise
        options.precision = "float32"
    model.set_precision(options.precision)


def on_each_rank(
    train_step: Callable, model: Mixer, optimizer: Optimizer, world: World, graph: str
) -> Callable:
    """step(counts, *arrays), for train_step(*arrays, count=, first=), recorded as a CUDA graph.

    counts  how many examples each rank has; the arrays are those of this rank
    count   all of them;  first  the number among them of this rank's first
    """
    recorded = record(train_step, model, optimizer, graph=graph)
    plain = record(train_step, model, optimizer, graph="off")
    if world.size > 1:  # one rank that doesn't record would wait for the others' sums
        warnings.filterwarnings("error", message=".*could not be recorded")

    def step(counts: Sequence[int], *arrays: Any) -> Any:
        where = {"count": int(sum(counts)), "first": int(sum(counts[: world.rank]))}
        if min(counts):
            return recorded(*arrays, **where)
        # Some rank has no examples, and nothing to record: then no rank may, as a recording holds
        # the sum of all ranks' gradients.
        return (plain if counts[world.rank] else train_step)(*arrays, **where)

    return step


def parts(size: int, count: int) -> list[slice]:
    """`size` examples in `count` parts, as even as it goes; none is empty."""
    borders = [size * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(borders) if a < b]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A CSV file, whole or as it was."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    with replace_file(path) as file:
        file.write(text.getvalue().encode())
