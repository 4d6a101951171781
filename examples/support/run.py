"""A run that is kept on disk: what train_mnist.py and finetune.py have in common. Their loops are
their own; they tell a Run what came of each step, and it shows progress, writes down what was
learned so far, and stops between two steps when it is asked to.

    with Run(options, given, SETTINGS, world, OUT) as run:   # takes a directory, or recalls
        run.start(model, optimizer, steps, every, data)      # settings; goes on from there
        with run.bar(total, run.images):
            for row, end in run.rows():
                while run.step < end:
                    run.add(size, *train_step(images, labels))
                    if run.interrupted:
                        return run.stop()
                run.end_row(validate)                        # of metrics.csv, and a checkpoint
        run.report(...)

run_directory.py says which directory, and whether what its checkpoint says can be true; stopping.py
what Ctrl-C, SIGTERM and a closed terminal do. If the directory was removed, it is made anew.

With several processes (minimixer/parallel) each has a Run of its own. They add up what they learned
of a step, rank 0 alone writes files, and they stop after the same step.
"""

import argparse
import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minimixer import Mixer, fetch, parallel
from minimixer.parallel import World
from minimixer.training.checkpoint import load_checkpoint, save_checkpoint
from minimixer.training.metrics import Metrics
from minimixer.training.names import command, printable
from minimixer.training.optim import Optimizer
from minimixer.training.report import save_pictures
from support.run_directory import (
    RESULTS,
    best_row,
    claim,
    exhausted,
    find,
    hold,
    read_progress,
    write_rows,
)
from support.settings import Settings, check_given, dashes
from support.stopping import StopSignal, say

LAG = 8  # steps that a GPU may be behind: it works on while Python prepares the next ones
# In 80 columns, also with hours and a few digits more.
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {rate_fmt}{postfix}"


class Run:
    """One training run in a directory of its own: `out`, with checkpoint.npz and metrics.csv.

    ValueError or OSError, and nothing is changed, if results could not be kept there, or would
    replace others; with options.resume if there is no run to go on with, or one with other
    `settings` than those that were `given`. Else `options` gets its settings. A row of metrics.csv
    is of an epoch, or of some steps (`unit`), and judged by images that are `held_out`; `waits`:
    it tells the share of the time that was spent waiting for images, too.
    """

    def __init__(
        self, options: argparse.Namespace, given: set[str], settings: Settings, world: World,
        default_out: str, unit: str = "epoch", held_out: str = "test", waits: bool = False,
    ):  # fmt: skip
        self.options, self.given, self.settings, self.world = options, given, settings, world
        self.unit, self.held_out = unit, held_out
        self.columns = columns = (
            unit, "train_loss", "train_accuracy", f"{held_out}_loss", f"{held_out}_accuracy",
            *(["waiting"] if waits else []), "seconds", "images_per_second",
        )  # fmt: skip
        apart = settings.keys() | {"out", "workers"}  # may differ, or are compared by start()
        world.check_same(options={k: v for k, v in vars(options).items() if k not in apart})
        self.lock, stored = None, None
        if options.resume and options.overwrite:
            raise ValueError("--overwrite is for a new run, --resume for an old one")
        if world.rank == 0:
            with contextlib.ExitStack() as until_checked:
                if options.resume:
                    self.out, self.lock = find(options.out, default_out)
                    until_checked.callback(self.lock.release)
                    stored = read_progress(self.checkpoint, settings, columns)["settings"]
                    check_given(options, given, settings, stored, self.checkpoint)
                else:
                    self.out, self.lock = claim(options.out, default_out, options.overwrite)
                until_checked.pop_all()
            shown, refusal = printable(self.out), self.lock.refusal
            if refusal:
                say(f"{shown} can't be locked ({refusal}): start no other run there")
            if not options.out and self.out != Path(default_out):
                anew = f"results go to {shown}: {default_out} has those of another run"
                say(f"resuming {shown}" if options.resume else anew)
        options.out, stored = world.share((str(getattr(self, "out", "")), stored))
        self.out = Path(options.out)
        for name, value in (stored or {}).items():
            if not (name.startswith("data") and name in given):  # the data may have moved; their
                setattr(options, name, value)  # number tells whether they are the same
        self.saved: bool | None = None  # is the checkpoint one of this run? None before start()
        self.step = 0  # the next one
        self._coming: deque[tuple[int, int, Any]] = deque()  # steps whose results were not read

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.lock is not None:
            self.lock.release()
            if isinstance(error, OSError) and error.errno and self.saved is not None:  # a full disk
                text = f"{error.strerror}; {self._kept('--resume goes on from it')}"
                raise OSError(error.errno, text, error.filename or str(self.out)) from None

    def _kept(self, then: str) -> str:
        """What is left of a run that failed, if somebody did not remove it."""
        whole = f"the last checkpoint, {self.checkpoint}, is whole: {then}"
        gone = f"{self.checkpoint} is gone" if self.saved else "nothing was saved"
        return whole if self.saved and self.checkpoint.is_file() else gone

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.npz"

    @property
    def best(self) -> Path:
        """The weights of the best validation, with --keep best."""
        return self.out / "best.npz"

    def start(self, model: Mixer, optimizer: Optimizer, steps: int, every: int, data: int) -> None:
        """Begin, or go on, with `every` steps to a row of metrics.csv. `data` is a number that
        tells data sets apart."""
        self.model, self.optimizer, self.every = model, optimizer, every
        self.lag, self.saved = 0 if model.device == "cpu" else LAG, self.options.resume
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
            progress = None
            if world.rank == 0:
                progress = read_progress(self.checkpoint, self.settings, self.columns)
                self._check_progress(progress, data, steps)
                load_checkpoint(self.checkpoint, model, optimizer)
            self.progress = world.share(progress)
            world.broadcast(model, optimizer)
            self.progress["settings"] = values  # the data may have moved
        self.step = self.progress["step"]

    def _check_progress(self, progress: dict[str, Any], data: int, steps: int) -> None:
        if progress["data"] != data or progress["steps"] != steps:
            raise ValueError(f"the data hold other images than those of the run in {self.out}")
        rows = progress["history"]
        counts = [self._count(number) for number in range(len(rows))]
        last = self._end(len(rows) - 1) if rows else 0
        if [row[self.unit] for row in rows] != counts or not (
            last <= progress["step"] <= self._end(len(rows))
        ):
            raise ValueError(f"{self.checkpoint}: its history does not belong to its step")

    def _end(self, row: int) -> int:
        """The step with which a row ends."""
        return min((row + 1) * self.every, self.progress["steps"])

    def _count(self, row: int) -> int:
        """The epoch or the step with which a row ends, as metrics.csv has it."""
        return self._end(row) if self.unit == "step" else row + 1

    def rows(self) -> Iterator[tuple[int, int]]:
        """(its number, the step with which it ends) of each row to come; no more of them once
        --patience is over."""
        rows = -(-self.progress["steps"] // self.every)
        patience = getattr(self.options, "patience", 0)
        while len(self.history) < rows and not exhausted(self.history, patience):
            row = len(self.history)
            shown = f"{self.unit} {self._count(row)}/{self._count(rows - 1)}"
            self._bar.set_description_str(shown)
            yield row, self._end(row)

    def _begin_row(self) -> None:
        self.progress.update(images=0, loss_sum=0.0, correct=0, seconds=0.0, waited=0.0)

    @contextlib.contextmanager
    def bar(self, images: int, done: int) -> Iterator[Any]:
        """Show progress, `done` of `images` were trained on before, and mind signals to stop. There
        is a line for each row as well; where nobody watches, in a file, there is no bar."""
        self._started = time.perf_counter() - self.progress["seconds"]
        watched = getattr(sys.stderr, "isatty", bool)()
        with StopSignal(self.world.rank == 0) as self._signals, tqdm(
            total=images, initial=done, unit="img", unit_scale=True, dynamic_ncols=True,
            bar_format=BAR, disable=not watched,
        ) as self._bar:  # fmt: skip
            self.interrupted = False
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
        not finite. `interrupted` is set once it is seen that any rank was told to stop."""
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
            if not self._bar.disable:
                text = "loss {:.3g}, {:.1%}".format(*self._means())
                self._bar.set_postfix_str(text, refresh=False)

    def _means(self) -> tuple[float, float]:
        """Loss and accuracy in training since the last row; NaN if there was no image."""
        images = self.progress["images"] or np.nan
        return self.progress["loss_sum"] / images, self.progress["correct"] / images

    def end_row(self, validate: Callable[[], Metrics]) -> None:
        """A row of metrics.csv, a checkpoint, and a line to read: what training gave since the last
        row, what `validate()` finds, and the time that training took."""
        self._read(0)
        progress, history = self.progress, self.history
        images, seconds, number = progress["images"], progress["seconds"], len(history)
        trained, found = self._means(), validate()
        waiting = progress["waited"] / max(1e-9, seconds)
        values = {
            self.unit: self.step if self.unit == "step" else number + 1,
            "train_loss": trained[0], "train_accuracy": trained[1],
            f"{self.held_out}_loss": found.loss, f"{self.held_out}_accuracy": found.accuracy,
            "waiting": waiting, "seconds": seconds,
            "images_per_second": images / seconds if images else 0.0,
        }  # fmt: skip
        history.append({name: values[name] for name in self.columns})
        self._begin_row()
        progress["step"] = self.step
        self.world.check_same(weights=self.model.buffer.values)  # or they have drifted apart
        is_best = self.keeps_best and best_row(history) == len(history) - 1
        try:
            self._save(is_best)
        except ValueError as error:  # weights that are not finite
            history.pop()
            raise self._diverged(str(error), self.step - 1) from None
        self.write_metrics()
        row, total = history[-1], self._count(-(-progress["steps"] // self.every) - 1)
        say(
            f"{self.unit} {row[self.unit]}/{total}: {self.held_out} accuracy {found.accuracy:.2%}, "
            f"loss {found.loss:.4g}; training {trained[1]:.2%}, {trained[0]:.4g}"
            f"{'; best' if is_best else ''}"
        )
        self._started = time.perf_counter()

    @property
    def keeps_best(self) -> bool:
        return getattr(self.options, "keep", "last") == "best"

    @property
    def reported(self) -> int:
        """The number of the row that the run is judged by; `reported_model` is its model."""
        return best_row(self.history) if self.keeps_best and self.history else len(self.history) - 1

    def reported_model(self) -> Mixer:
        if self.reported == len(self.history) - 1:
            return self.model
        best = self.stored_model(self.best)
        best.to(self.model.device).set_precision(self.model.precision)
        return best

    def stored_model(self, path: str | Path) -> Mixer:
        """A model from a file, which is rank 0's."""
        return self.world.share(Mixer.load(path) if self.world.rank == 0 else None)

    def _save(self, is_best: bool = False) -> None:
        """The best weights go first: a kill between the two makes only that row again."""
        if self.world.rank:
            return
        self._have_directory()
        if not self.saved and self.options.overwrite:
            for name in RESULTS[1:]:  # of another run than what will stand beside them
                (self.out / name).unlink(missing_ok=True)
        if is_best:
            save_checkpoint(self.best, self.model)
        save_checkpoint(self.checkpoint, self.model, self.optimizer, self.progress)
        self.saved = True

    def _have_directory(self) -> None:
        """Somebody may have removed it, and the lock with it."""
        if not (self.out / ".lock").exists():
            lock = hold(self.out)
            self.lock.release()
            self.lock = lock

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of metrics.csv."""
        return self.progress["history"]

    def write_metrics(self) -> None:
        if self.world.rank == 0:
            write_rows(self.out / "metrics.csv", self.history)

    @property
    def seconds(self) -> float:
        """What the rows took to train."""
        return sum(row["seconds"] for row in self.history)

    @property
    def images(self) -> int:
        """On how many was trained so far."""
        rows = sum(row["images_per_second"] * row["seconds"] for row in self.history)
        return round(rows) + self.progress["images"]

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / max(1e-9, self.seconds)

    @property
    def trained(self) -> bool:
        """Has anything been learned so far?"""
        return bool(self.history or self.progress["images"] or self._coming)

    def report(
        self, text: str, images: Any, labels: np.ndarray, probabilities: np.ndarray,
        class_names: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Write metrics.csv and, of what the model makes of `images`, pictures; say `text`, and
        where all of it is."""
        self.write_metrics()
        shown = images, labels, probabilities, class_names
        pictures = save_pictures(self.out, self.history, *shown)
        files = [*([self.best] if self.keeps_best else []), self.checkpoint]
        files += [self.out / "metrics.csv", *pictures]
        say(f"{text}\nwrote {', '.join(map(printable, files))}")
        if not pictures:
            say("for pictures of the curves and the mistakes: pip install matplotlib, then "
                f"--resume --out {command([str(self.out)])}")  # fmt: skip

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
        say(f"stopped after step {self.step} of {self.progress['steps']}, saved in "
            f"{printable(self.checkpoint)}; to go on: {command(again)}")  # fmt: skip
        return 130

    def _diverged(self, what: str, step: int) -> ValueError:
        clip = "" if self.options.clip else ", or --clip 1"
        return ValueError(f"{what} at step {step + 1}; {self._kept('of a good state')}; try a "
                          f"lower --lr{clip}, with another --out")  # fmt: skip
