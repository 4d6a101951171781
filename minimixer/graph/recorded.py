"""One launch a step: what a function asks of a GPU, recorded once and replayed.

Each operation on a GPU costs Python some ten microseconds to ask for, and a small model's training
step asks for two hundred that take one or two each: the GPU waits. A CUDA graph is such a list of
requests, with the addresses they read and write, and starting it is one request.

    def step(images, labels):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    step = record(step, model, optimizer)
    loss = step(images, labels)              # as before; on a GPU recorded and replayed

Replaying repeats the work on arrays, on whatever lies at the same addresses now, and none of the
function's Python. So all that changes from step to step has to be an input or lie on the device:
weights, gradients, the optimizer's `control`, the counters behind random numbers. That is why a
buffer is never rebound, and why nothing random has a hidden state. What a recording depends on
beyond that is part of its key: shapes, the modules and their settings, which gradients there are,
the optimizer's settings, the addresses. When any of it changes, the function runs as it is once,
and is recorded anew when the same comes again.

All this happens in a memory pool of its own: what is freed while recording is used again by the
rest of the recording, and by the next one, but by nobody else; replaying allocates nothing. When
memory runs out, recordings are dropped to make room. Only inputs and results lie outside of it.
Inputs are copied to where the recording reads them, unless they lie on the GPU and always at the
same place.

Next: `recording.py`, one recording.
"""

import contextlib
import itertools
import sys
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from ..engine import forms
from ..engine.arrays import Array, address, is_array
from ..engine.aside import join
from ..engine.autograd import Variable
from ..engine.grad_mode import is_grad_enabled
from ..engine.tensor import Tensor
from ..nn.buffer import ParameterBuffer
from ..nn.layers import Module, is_evaluating
from ..nn.parameters import Parameter
from ..training.optim import Optimizer
from .fingerprint import Fingerprint, token
from .recording import Pool, Recording, own_stream, with_priorities
from .staging import Inbox

MOST_RECORDINGS = 16
PATIENCE = 100  # calls: a recording not used for so many makes room for another
MOST_CHANGES = 8  # calls in a row of a kind never seen before
_has_grad, _requires_grad = attrgetter("has_grad"), attrgetter("requires_grad")  # at C's speed


def record(
    function: Callable[..., Any],
    model: Module,
    optimizer: Optimizer | None = None,
    graph: str = "auto",
) -> "Recorded":
    """`function` as a callable that, with the model on a GPU, records and replays what it does.

    function   takes arrays (positional; on the CPU or the model's device) and settings (by name:
               numbers, text, objects that stay as they are), and gives Tensors or arrays, or
               a tuple, list or dict of them, or None
    model      all Parameters and random layers that it uses;  optimizer  the one that it steps
    graph      "auto": record on a GPU, run as it is on the CPU;  "on": the same, but a model on
               the CPU is an error;  "off": never record

    Results carry no gradient and are valid until the next call. Plain arrays reach the function on
    the model's device, where the values of images and labels are not checked. A function that
    waits for the GPU, as reading a number does, can't be recorded: one warning says so, and it
    runs as it is. ValueError for another `graph`.
    """
    if graph not in ("auto", "on", "off"):
        raise ValueError(f"graph must be 'auto', 'on' or 'off', got {graph!r}")
    return Recorded(function, model, optimizer, graph)


class Recorded:
    """What `record` returns. `recordings` counts those it holds."""

    def __init__(
        self, function: Callable[..., Any], model: Module, optimizer: Optimizer | None, graph: str
    ):  # fmt: skip
        self.function = function
        self.model = model
        self.optimizer = optimizer
        self.graph = graph
        self._recordings: dict[Any, Recording] = {}
        self._seen: set[Any] = set()  # keys, as those of all but the last dict
        self._refused: dict[Any, float] = {}  # can't be recorded before that call
        self._settled: set[Any] = set()  # states in which the function ran before
        self._inboxes: dict[Any, list[Inbox]] = {}  # by shapes
        self._places: dict[Any, tuple[int, ...]] = {}  # of the last inputs, by shapes
        self._pools: dict[str, Pool] = {}
        self._numbers: dict[Fingerprint, int] = {}
        self._fingerprint: Fingerprint | None = None
        self._model = 0  # the number of that
        self._parameters: list[Parameter] = []
        self._count, self._calls, self._new_in_a_row = itertools.count(), 0, 0
        self._said: set[str] = set()
        # Not __del__: while Python collects a cycle, CuPy loses the blocks of a pool that is in it.
        held = (self._recordings, self._inboxes, self._pools)
        weakref.finalize(self, _give_back, *held).atexit = False

    @property
    def reserved_bytes(self) -> int:
        """What its memory pools hold, in use or not."""
        return sum(pool.total_bytes() for pool in self._pools.values())

    @property
    def recordings(self) -> int:
        return len(self._recordings)

    def __call__(self, *inputs: Any, **settings: Any) -> Any:
        arrays = [v.data if isinstance(v, Variable) else v for v in inputs]
        for position, array in enumerate(arrays):
            if not is_array(array):
                raise TypeError(
                    f"a recorded function takes arrays; input {position} is {array!r:.60}: give "
                    "settings by name"
                )
        self._look_at_model()
        device = self._parameters[0].device if self._parameters else "cpu"
        if device == "cpu":
            if self.graph == "on":
                raise ValueError("graph='on' records CUDA graphs, and the model is on the CPU")
            return _detached(self.function(*arrays, **settings))
        cupy = sys.modules["cupy"]
        if cupy.cuda.get_current_stream().is_capturing():  # into another's recording
            return _detached(self.function(*arrays, **settings))
        if cupy.cuda.Device().id == int(device[5:]):
            return self._on_gpu(arrays, settings, device)
        with cupy.cuda.Device(int(device[5:])):
            return self._on_gpu(arrays, settings, device)

    def _on_gpu(self, arrays: list[Array], settings: dict[str, Any], device: str) -> Any:
        cupy = sys.modules["cupy"]
        self._calls += 1
        shapes = (device, *((a.shape, a.dtype) for a in arrays))
        inputs, places = self._inputs(shapes, arrays)
        if self.graph == "off":
            return _detached(self.function(*inputs, **settings))
        state = self._state()
        key = (shapes, places, token(sorted(settings.items())) if settings else None, *state)
        recording = self._recordings.get(key)
        if recording is None and key in self._seen and self._may_record(key):
            recording = self._record(key, inputs, settings, device)
        if recording is not None:
            self._new_in_a_row, recording.last_call = 0, self._calls
            return recording.replay()
        self._note(key)
        if state not in self._settled:  # a first call may make what is there to stay
            result = _detached(self.function(*inputs, **settings))
            self._settled.add(self._state())
            cupy.get_default_memory_pool().free_all_blocks()
            return result
        with self._memory(device) as outside, own_stream():
            return outside(_detached(self.function(*inputs, **settings)))

    def _inputs(self, shapes: Any, arrays: list[Array]) -> tuple[list[Array], Any]:
        """What the function is to read, and where that lies if it is not ours: arrays on the GPU
        that come from the same place twice in a row are read there, others are copied."""
        index = int(shapes[0][5:])
        places = tuple([_place(array, index) for array in arrays])
        last, self._places[shapes] = self._places.get(shapes, places), places
        if 0 not in places and places == last:
            return arrays, places
        if shapes not in self._inboxes:
            if len(self._inboxes) > 2 * MOST_RECORDINGS:  # of which at least half are not recorded
                recorded = {key[0] for key in self._recordings}
                oldest = next(shapes for shapes in self._inboxes if shapes not in recorded)
                del self._inboxes[oldest]
                self._places = {shapes: places}
            self._inboxes[shapes] = [Inbox(a.shape, a.dtype) for a in arrays]
        for inbox, array in zip(self._inboxes[shapes], arrays, strict=True):
            inbox.take(array)
        return [inbox.array for inbox in self._inboxes[shapes]], None

    def _may_record(self, key: Any) -> bool:
        """Not if it failed before. If there are many already, the one that was not used for
        longest goes, but never one in use: that would be recorded again and again."""
        if self._calls < self._refused.get(key, 0):
            return False
        if len(self._recordings) < MOST_RECORDINGS:
            return True
        oldest = min(self._recordings, key=lambda key: self._recordings[key].last_call)
        if self._recordings[oldest].last_call + PATIENCE < self._calls:
            del self._recordings[oldest]
            return True
        self._warn(
            f"shapes and settings come in more than {MOST_RECORDINGS} kinds, and only so many "
            "steps are replayed; batches of one size avoid that"
        )
        return False

    def _note(self, key: Any) -> None:
        """That a call of this kind was run as it is."""
        if key in self._seen:
            return
        self._new_in_a_row += 1
        if self._new_in_a_row > MOST_CHANGES:
            self._warn(
                "shapes, settings or attributes of modules change from step to step, so no step "
                "could be replayed yet; batches of one size, or graph='off', avoid needless work"
            )
        for known in (self._seen, self._refused, self._settled):
            if len(known) > 1000:
                known.clear()
        self._seen.add(key)

    def _warn(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            warnings.warn(f"minimixer: {text}", RuntimeWarning, stacklevel=5)

    # ---- what a recording depends on ------------------------------------------------------------

    def _look_at_model(self) -> None:
        """Find Parameters, modes and settings anew if any module was changed since."""
        if self._fingerprint is not None and self._fingerprint.is_current():
            return
        self._parameters = self.model.parameters()
        self._fingerprint = Fingerprint(self.model)
        if len(self._numbers) > 100:
            self._numbers.clear()
        if self._fingerprint not in self._numbers:
            self._numbers[self._fingerprint] = next(self._count)
        self._model = self._numbers[self._fingerprint]

    def _state(self) -> tuple[Any, ...]:
        parameters, optimizer = self._parameters, self.optimizer
        buffer = parameters[0].buffer
        assert buffer is not None
        return (
            self._model, id(forms.table), is_grad_enabled(), is_evaluating(),
            _of_buffer(buffer), None if optimizer is None else _of_optimizer(optimizer),
            bytes(map(_has_grad, parameters)), bytes(map(_requires_grad, parameters)),
        )  # fmt: skip

    # ---- recording ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _memory(self, device: str) -> Iterator[Callable]:
        """Within it, arrays are made in this object's pool. Gives a function that copies results
        to where they may outlive it: one held array would hold back a whole stretch of the pool."""
        cupy = sys.modules["cupy"]
        if device not in self._pools:
            self._pools[device] = Pool(int(device[5:]), self._recordings)
        allocator = cupy.cuda.get_allocator()

        def outside(results: Any) -> Any:
            with cupy.cuda.using_allocator(allocator):
                return _each(results, lambda array: array.copy())

        with cupy.cuda.using_allocator(self._pools[device].malloc):
            yield outside

    def _record(self, key: Any, inputs: list[Array], settings: dict[str, Any], device: str) -> Any:
        parameters = self._parameters
        before = [(p.has_grad, p.version) for p in parameters]
        optimizer = self.optimizer
        clipped = optimizer is not None and optimizer.clipped
        result, failure, graph = None, None, None
        with self._memory(device) as outside, own_stream() as stream:
            self._pools[device].gather()
            stream.begin_capture()
            try:
                result = _detached(self.function(*inputs, **settings))
                join()
                result = outside(result)
            except Exception as error:
                failure = error
            finally:
                try:
                    graph = stream.end_capture()
                except Exception as error:
                    failure = failure or error
            if failure is not None:
                with contextlib.suppress(Exception):  # what the attempt put aside
                    join()
        after = [(p.has_grad, p.version) for p in parameters]
        for parameter, (has_grad, version) in zip(parameters, before, strict=True):
            parameter.has_grad, parameter.version = has_grad, version
        recording = Recording(graph, result, parameters, before, after)
        if optimizer is not None:
            recording.clipped, optimizer.clipped = (optimizer, optimizer.clipped), clipped
        if failure is None:
            recording.graph = with_priorities(graph)
            self._recordings[key] = recording
            return recording
        where, what, short = _where(failure), _first_line(failure), isinstance(failure, MemoryError)
        failure = None  # whose traceback holds all arrays of the attempt
        self._refused[key] = self._calls + PATIENCE if short else float("inf")
        if short:
            del recording, result, graph
            self._pools[device].drop()
            reason = "there is not memory enough to keep what the recording needs"
        else:
            reason = (
                "what waits for the GPU (.item(), .numpy(), print) or copies from the CPU belongs "
                "outside of it"
            )
        self._warn(
            f"{where} could not be recorded as a CUDA graph, so the function runs as it is: "
            f"{what}; {reason}"
        )
        return None


def _of_buffer(buffer: ParameterBuffer) -> tuple[Any, ...]:
    """What lies where, and how it is read."""
    arrays = (
        buffer.values, buffer.gradients, buffer.low, buffer.loss_scale, buffer.random.counters,
    )  # fmt: skip
    kinds = [(address(a), a.dtype) for a in arrays if a is not None]
    return (*kinds, buffer.precision, buffer.scaled, buffer.random.seed)


def _of_optimizer(optimizer: Optimizer) -> tuple[Any, ...]:
    """The same; what changes from step to step lies on the device."""
    places = [address(array) for array in (optimizer.control, *optimizer.state.values())]
    settings = [getattr(optimizer, name) for name in optimizer.constants]
    return (*places, optimizer.changes, optimizer.clipped, *settings)


def _give_back(recordings: dict[Any, Any], inboxes: dict[Any, Any], pools: dict[Any, Any]) -> None:
    """The memory of a Recorded that is gone, but for what a caller still holds."""
    recordings.clear()
    inboxes.clear()
    for pool in pools.values():
        pool.drop()


def _place(array: Array, device: int) -> int:
    """The address of an array that a recording may read where it is, else 0."""
    if isinstance(array, np.ndarray) or array.device.id != device:
        return 0
    return array.data.ptr if array.flags.c_contiguous else 0


def _detached(results: Any) -> Any:
    """The same results, without the graph that they came from."""
    return _each(results, lambda array: array)


def _each(results: Any, function: Callable[..., Any]) -> Any:
    """The results with `function` applied to every array, Tensors staying Tensors."""
    if isinstance(results, Variable):
        return Tensor(function(results.data))
    if isinstance(results, dict):
        return {name: _each(value, function) for name, value in results.items()}
    if isinstance(results, (tuple, list)):
        found = [_each(value, function) for value in results]
        return type(results)(*found) if hasattr(results, "_fields") else type(results)(found)
    return function(results) if is_array(results) else results


def _where(error: Exception) -> str:
    """The last line of the user's code on the way to an error."""
    ours = str(Path(__file__).parents[1])
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(ours) and "cupy" not in frame.filename
    ]  # fmt: skip
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "a step"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
