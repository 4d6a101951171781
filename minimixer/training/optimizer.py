"""What all optimizers share: which weights are moved, how far, and when.

An optimizer holds a model's flat buffer and a list of ranges of it: (start, stop, lr, decay).
Parameter groups, weight decay on matrices only and frozen parameters are nothing more than such
ranges, and an update is a handful of array operations on each. The numbers that change from step
to step (learning-rate factor, step count, clipping factor, whether the gradients are finite) lie
in one small array, `control`, on the model's device: a GPU reads them there and never waits for
Python.

>>> from minimixer import AdamW, Mixer
>>> AdamW(Mixer(8, 4, 1, 16, 8, 32, num_classes=10).parameters(), weight_decay=0.05)
AdamW(betas=(0.9, 0.999), eps=1e-08, step 0
  lr=0.001, weight_decay=0.05: 6 Parameters, 2,016 weights
  lr=0.001, weight_decay=0.0: 12 Parameters, 182 weights
)

Next: `optim.py`, SGD, Adam, AdamW.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from ..engine.backend import (
    Array,
    blocks,
    check_not_recorded,
    device_of,
    namespace,
    to_device,
    to_numpy,
    use_device_of,
)
from ..engine.checks import all_finite, check_number
from ..engine.dispatch import replaceable
from ..engine.habits import missing
from ..engine.rearrange import whole
from ..nn.loss_scale import FINITE as FINITE
from ..nn.loss_scale import update_if_finite
from ..nn.module import Module
from ..nn.parameters import Parameter, ParameterBuffer
from .norms import gradient_norm

LR_FACTOR, STEP, CLIP = range(3)  # the places in `control`, and FINITE, the last
Range = tuple[int, int, float, float]  # start, stop, lr, decay
_buffer = attrgetter("buffer")  # at C's speed
_GROUP_KEYS = {"params", "lr", "weight_decay"}


def _check_rate(name: str, value: Any) -> float:
    return check_number(name, value, 0, 1e38, "[]")  # beyond it is infinite in float32


class Optimizer:
    """What all optimizers share. Subclasses define `moments` and `update`.

    parameters    a model, Parameters of one, or groups: dicts with "params" and, if they differ
                  from the defaults, "lr" and "weight_decay". Those with requires_grad=False stay.
    lr            learning rate; `lr_factor`, set by a schedule, multiplies every group's
    weight_decay  pulls weights towards 0; only matrices, not biases and LayerNorms

    ValueError: no parameters, parameters of different models or twice, lr or weight_decay < 0;
    TypeError: what is no Parameter.
    """

    moments: tuple[str, ...] = ()  # the running averages' names, one array each
    constants: tuple[str, ...] = ()  # other attributes that an update depends on: see `check`

    def __init__(self, parameters: Sequence[Any] | Module, lr: float, weight_decay: float):
        groups: list[Any] = list(
            parameters.parameters() if isinstance(parameters, Module) else parameters
        )
        if not any(isinstance(group, dict) for group in groups):
            groups = [{"params": groups}]
        self.parameters: list[Parameter] = []
        self._frozen: list[Parameter] = []
        self._settings: list[tuple[float, float]] = []
        self.changes = 0  # how often the settings were changed, for who remembers
        for group in groups:
            if not isinstance(group, dict) or not {"params"} <= set(group) <= _GROUP_KEYS:
                raise ValueError(
                    f"a group of Parameters is a dict of {', '.join(sorted(_GROUP_KEYS))}; got "
                    + (f"{list(group)}" if isinstance(group, dict) else f"a {type(group).__name__}")
                )
            group_lr = _check_rate("lr", group.get("lr", lr))
            decay = _check_rate("weight_decay", group.get("weight_decay", weight_decay))
            for parameter in group["params"]:
                if not isinstance(parameter, Parameter):
                    raise TypeError(
                        f"the optimizer takes Parameters, such as model.parameters(), got a "
                        f"{type(parameter).__name__}"
                    )
                if parameter.requires_grad:
                    self.parameters.append(parameter)
                    self._settings.append((group_lr, decay if parameter.ndim > 1 else 0.0))
                else:
                    self._frozen.append(parameter)
        if not self.parameters:
            raise ValueError("the optimizer was given no parameters to train")
        if len({id(p) for p in self.parameters}) < len(self.parameters):
            raise ValueError("a parameter was given to the optimizer twice")
        if len({id(p.buffer) for p in self.parameters}) > 1:
            raise ValueError(
                "these parameters belong to different models; make one Module that holds them all "
                "and use its parameters(), or one optimizer for each model"
            )
        buffer = self.parameters[0].buffer
        assert buffer is not None
        self.buffer: ParameterBuffer = buffer
        self.control: Array = np.array([1.0, 0.0, 1.0, 1.0])
        self.clipped = False  # is `control` to clip the next step?
        if isinstance(self.moments, str):
            raise TypeError(f"moments must be a tuple of names: ({self.moments!r},)")
        self.state = {name: np.zeros(buffer.size, dtype=buffer.dtype) for name in self.moments}
        self._ranges: tuple[list[bool], list[Range]] | None = None
        self._looked, self._newcomers = -1, list[tuple[str, Parameter]]()
        buffer.optimized |= {p.start for p in self.parameters}
        self._follow()

    # ---- what a training loop calls -------------------------------------------------------------

    def step(self) -> None:
        """Move every parameter that has a gradient, and clear the clipping factor."""
        self._follow()
        self._look_for_newcomers()
        if self.scaled:
            update_if_finite(self, self._active_ranges())
        else:
            self.update_ranges(self._active_ranges())
        count_step(self.control, self.buffer.random.counters)
        self.clipped = False
        for parameter in self.parameters:
            parameter.version += 1

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and how they were to be clipped. `set_to_none`, PyTorch's, can't
        be otherwise: a gradient of zeros would move weights, by momentum and decay (ValueError)."""
        if not set_to_none:
            raise ValueError("zero_grad: gradients are forgotten, never set to 0: zero_grad()")
        if self.clipped:
            use_device_of(self.control)
            self.control[CLIP], self.clipped = 1, False
        for parameter in self.parameters:
            parameter.has_grad = False

    def clip_grad_norm(self, max_norm: float) -> Array:
        """Let the coming step see gradients of norm at most `max_norm`, all of them scaled alike.

        Returns their norm before that, a 0-d array on the device (Pascanu et al. 2013).
        """
        max_norm = check_number("max_norm", max_norm, ends="(]")
        self._follow()
        norm = self.gradient_norm()
        self.control[CLIP] = namespace(norm).minimum(1, max_norm / (norm + 1e-6))
        self.clipped = True
        return norm

    @property
    def scaled(self) -> bool:
        """Do gradients come from float16, and may overflow?"""
        return self.buffer.scaled

    @property
    def lr(self) -> float:
        """The (first group's) learning rate; assigning sets it for all groups."""
        return self._settings[0][0]

    @lr.setter
    def lr(self, lr: float) -> None:
        lr = _check_rate("lr", lr)
        self._change([(lr, decay) for _, decay in self._settings])

    @property
    def weight_decay(self) -> float:
        """The (largest group's) weight decay; assigning sets it for the matrices of all groups."""
        return max(decay for _, decay in self._settings)

    @weight_decay.setter
    def weight_decay(self, decay: float) -> None:
        decay = _check_rate("weight_decay", decay)
        pairs = zip(self.parameters, self._settings, strict=True)
        self._change([(lr, decay if p.ndim > 1 else 0.0) for p, (lr, _) in pairs])

    def _change(self, settings: list[tuple[float, float]]) -> None:
        self._settings, self._ranges = settings, None
        self.changes += 1

    @property
    def lr_factor(self) -> float:
        """What a schedule multiplies every group's learning rate with."""
        return float(self.control[LR_FACTOR])

    @lr_factor.setter
    def lr_factor(self, factor: float) -> None:
        factor = _check_rate("lr_factor", factor)
        use_device_of(self.control)
        if device_of(self.control) != "cpu":
            check_not_recorded("setting lr_factor")
        self.control[LR_FACTOR] = factor

    def state_dict(self) -> dict[str, Any]:
        """{"step": int, and for each moment a list of NumPy arrays, one for each parameter}."""
        moments = {
            name: [to_numpy(p.window(array)).copy() for p in self.parameters]
            for name, array in self.state.items()
        }
        return {"step": int(self.control[STEP]), **moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another optimizer of this kind, for the same parameters, stopped."""
        self._follow()
        expected = {"step", *self.moments}
        if not isinstance(state, dict) or set(state) != expected:
            raise ValueError(
                f"optimizer state: expected {sorted(expected)}, got "
                + (f"{sorted(state)}" if isinstance(state, dict) else f"{state!r:.60}")
            )
        step = whole(state["step"], "optimizer state: step")
        if step < 0:
            raise ValueError(f"optimizer state: step is {step}")
        for name in self.moments:
            arrays = state[name] if isinstance(state[name], (list, tuple)) else ()
            if [np.shape(array) for array in arrays] != [p.shape for p in self.parameters]:
                raise ValueError(f"optimizer state: {name!r} does not fit the parameters")
            for array in map(np.asarray, arrays):
                if array.dtype.kind not in "fiu" or not all_finite(array, self.buffer.dtype):
                    raise ValueError(f"optimizer state: {name!r} holds NaN, infinity or no numbers")
                if name.endswith("_sq") and (array < 0).any():
                    raise ValueError(f"optimizer state: {name!r} holds squares below 0")
        for name in self.moments:
            for parameter, array in zip(self.parameters, state[name], strict=True):
                array = np.asarray(array, dtype=self.buffer.dtype)
                parameter.window(self.state[name])[...] = to_device(array, self.buffer.device)
        self.control[STEP] = step

    def check(self, name: str, value: Any) -> Any:
        """`value` as one of `constants` may be, also when it is assigned later; or ValueError."""
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, self.check(name, value) if name in self.constants else value)

    def __repr__(self) -> str:
        constants = [f"{name}={getattr(self, name)}" for name in self.constants]
        parts: dict[tuple[float, float], list[int]] = {}
        for parameter, setting in zip(self.parameters, self._settings, strict=True):
            parts.setdefault(setting, []).append(parameter.size)
        first = ", ".join([*constants, f"step {int(self.control[STEP])}"])
        lines = [f"{type(self).__name__}({first}"]
        for (lr, decay), sizes in parts.items():
            counts = f"{len(sizes)} Parameters, {sum(sizes):,} weights"
            lines.append(f"  lr={lr}, weight_decay={decay}: {counts}")
        return "\n".join([*lines, ")"])

    def __getattr__(self, name: str) -> Any:  # what is not there
        raise missing("Optimizer", name, type(self).__name__)

    def __deepcopy__(self, memo: dict) -> "Optimizer":
        raise TypeError(
            "copy the model, make a new optimizer from its parameters, and give that this one's "
            "state_dict()"
        )

    # ---- how it is done -------------------------------------------------------------------------

    @replaceable
    def update_ranges(self, ranges: list[Range]) -> None:
        """`update` for each block of each range. What changes from step to step comes as numbers;
        on a GPU as arrays of one, for a recorded step to find there what is in them by then."""
        buffer, gradients = self.buffer, self.buffer.make_gradients()
        factor, done, clip = (self.control[i : i + 1] for i in (LR_FACTOR, STEP, CLIP))
        if namespace(buffer.values) is np:
            factor, done, clip = factor.item(), int(done.item()), clip.item()
        else:
            factor, clip = factor.astype(buffer.dtype), clip.astype(buffer.dtype)
        for start, stop, lr, decay in ranges:
            for part in blocks(buffer.values, start, stop):
                w, *state = (array[part] for array in (buffer.values, *self.state.values()))
                g, rate = gradients[part] * clip, lr * factor
                if self.update(w, g, state, rate, decay, done + 1) is not None:
                    raise TypeError(f"{type(self).__name__}.update returns nothing: write w -= ...")
            buffer.refresh(start, stop)

    def gradient_norm(self) -> Array:
        """The norm of all gradients, 0-d, in the parameters' dtype."""
        gradients = self.buffer.make_gradients()
        parts = [gradients[start:stop] for start, stop, _, _ in self._active_ranges()]
        return gradient_norm(parts or [gradients[:1] * 0])

    def update(self, w: Array, g: Array, state: list[Array], lr: Any, decay: float, t: Any) -> Any:
        """Change w and state in place, for one block of a range; g, the clipped gradient, is yours.
        lr: the learning rate times its factor. t: the number of this step, from 1. Both are
        numbers, or arrays (1,) on a GPU: no `if` and no float() of them."""
        raise TypeError(f"{type(self).__name__} has no update")

    def _follow(self) -> None:
        """Go where the model went (`to`), and notice if it took other parameters."""
        buffer = self.buffer
        if {*map(_buffer, self.parameters)} != {buffer}:
            raise ValueError(
                "the model's parameters were gathered anew after this optimizer was made (was a "
                "layer replaced?); make a new optimizer from model.parameters()"
            )
        use_device_of(buffer.values)
        if device_of(self.control) != buffer.device:
            self.control = to_device(self.control, buffer.device)
        for name, array in self.state.items():
            if array.dtype != buffer.dtype or device_of(array) != buffer.device:
                self.state[name] = to_device(array, buffer.device).astype(buffer.dtype, copy=False)

    def _look_for_newcomers(self) -> None:
        """ValueError if Parameters that came into the model after its buffer was made, or were
        frozen then, are trained by no optimizer, and yet have a gradient. Those left out on purpose
        lie in the buffer."""
        if self._looked != Module.changes:
            owner = self.buffer.owner
            model = None if owner is None else owner()
            self._looked, found = (
                Module.changes,
                model.named_parameters() if model is not None else (),
            )
            frozen = {id(p) for p in self._frozen}
            self._newcomers = [
                (name, p) for name, p in found if p.buffer is not self.buffer or id(p) in frozen
            ]
        news = [
            name for name, p in self._newcomers
            if p.has_grad and p.requires_grad and p.buffer and p.start not in p.buffer.optimized
        ]  # fmt: skip
        if news:
            raise ValueError(
                f"{', '.join(news)} came into the model, or out of being frozen, after this "
                "optimizer was made, which would never train them; make a new optimizer from "
                "model.parameters()"
            )

    def _active_ranges(self) -> list[Range]:
        """Stretches of the buffer with gradients and equal settings, as long as possible."""
        has_grad = [p.has_grad for p in self.parameters]
        if self._ranges is None or self._ranges[0] != has_grad:
            pieces = sorted(
                (p.start, p.stop, *setting)
                for p, setting, has in zip(self.parameters, self._settings, has_grad, strict=True)
                if has
            )
            ranges: list[Range] = []
            for piece in pieces:
                if ranges and ranges[-1][1:] == (piece[0], *piece[2:]):
                    ranges[-1] = (ranges[-1][0], *piece[1:])
                else:
                    ranges.append(piece)
            self._ranges = has_grad, ranges
        return self._ranges[1]


@replaceable
def count_step(control: Array, counters: Array) -> None:
    """One step more, unless the gradients were not finite; the next is not clipped so far."""
    control[STEP : STEP + 1] += control[FINITE : FINITE + 1]
    control[CLIP] = control[FINITE] = 1
    counters[:1] += np.uint64(1)
