"""What all optimizers share: which weights are moved, how far, and when.

An optimizer is what moves a model's weights, once a step, after backward has brought gradients g.
Some use averages of past gradients, too (optim.py). The plainest is gradient descent:

    w <- w - lr g

Weight decay, w <- w - lr decay w (SGD adds decay w to g), also draws weights towards 0, unless the
gradients hold them. Of all models that read the training images well, that prefers those with small
matrices, whose scores change little when an image does: so they mostly read new images better. A
bias adds the same for all images, and needs none of it; a LayerNorm's gamma, which starts at 1,
would silence its channel at 0. Both are spared.

The weights lie in one flat buffer (parameters.py), of which an optimizer has a list of ranges, each
with (start, stop, lr, decay). Groups with settings of their own, decay on matrices only, Parameters
left as they are: all that is in the list. An update is a few array operations on each range.

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

from ..engine.arrays import Array, blocks, namespace, use_device_of
from ..engine.dispatch import replaceable  # a fast form (kernels/) may do its work
from ..nn.buffer import ParameterBuffer
from ..nn.loss_scale import FINITE, update_if_finite  # gradients from float16 may overflow
from ..nn.module import Module
from ..nn.parameters import Parameter
from .norms import Clipping  # clip_grad_norm
from .same_model import SameModel  # _follow, _look_for_newcomers: has the model changed?
from .settings import CLIP, LR_FACTOR, STEP, Settings, read_groups

Range = tuple[int, int, float, float]  # start, stop, lr, decay
_has_grad = attrgetter("has_grad")  # at C's speed


class Optimizer(Clipping, SameModel, Settings):
    """What all optimizers share. Subclasses define `moments` and `update`.

    parameters    a model, Parameters of one, or groups: dicts with "params" and, if they differ
                  from the defaults, "lr" and "weight_decay". Those with requires_grad=False stay.
    lr            learning rate; `lr_factor` (settings.py), set by a schedule, multiplies all
    weight_decay  pulls weights towards 0; only matrices, not biases and LayerNorms

    ValueError: no parameters, parameters of different models or twice, lr or weight_decay < 0;
    TypeError: what is no Parameter."""

    moments: tuple[str, ...] = ()  # names of running averages of g, g^2 (moments), an array each
    constants: tuple[str, ...] = ()  # other attributes that an update depends on: see `check`
    parameters: list[Parameter]

    def __init__(self, parameters: Sequence[Any] | Module, lr: float, weight_decay: float):
        # _settings: (lr, decay) of each; decay is 0 but for matrices
        self.parameters, self._frozen, self._settings = read_groups(parameters, lr, weight_decay)
        self.changes = 0  # how often the settings were changed, for who remembers
        self.buffer: ParameterBuffer = self.parameters[0].buffer
        # What changes with the steps, on the model's device: a GPU need not wait for Python. (CLIP:
        # by which clip_grad_norm shortens gradients; FINITE: whether they are.)
        self.control: Array = np.array([1.0, 0.0, 1.0, 1.0])  # LR_FACTOR, STEP, CLIP, FINITE
        self.clipped: bool = False  # is `control` to clip the next step?
        if isinstance(self.moments, str):
            raise TypeError(f"moments must be a tuple of names: ({self.moments!r},)")
        size, dtype = self.buffer.size, self.buffer.dtype
        self.state: dict[str, Array] = {name: np.zeros(size, dtype) for name in self.moments}
        self._ranges: tuple[Any, list[Range]] | None = None
        self._looked, self._newcomers = -1, list[tuple[str, Parameter]]()
        self._moves = -1  # how many moves of the buffer (`to`) it has followed
        self.buffer.optimized |= {p.start for p in self.parameters}  # same_model.py asks
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
        count_step(self.control, self.buffer.random.counters)  # of which the first is the step
        self.clipped = False
        for parameter in self.parameters:
            parameter.version += 1

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and how they were to be clipped. `set_to_none`, PyTorch's, can't
        be otherwise (ValueError): zeros would move weights, by decay and past gradients."""
        if not set_to_none:
            raise ValueError("zero_grad: gradients are forgotten, never set to 0: zero_grad()")
        if self.clipped:
            use_device_of(self.control)
            self.control[CLIP], self.clipped = 1, False
        for parameter in self.parameters:
            parameter.has_grad = False

    @property
    def scaled(self) -> bool:
        """Do gradients come from float16, and may overflow?"""
        return self.buffer.scaled

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, self.check(name, value) if name in self.constants else value)

    def check(self, name: str, value: Any) -> Any:
        """`value` as one of `constants` may be, also when it is assigned later; or ValueError."""
        return value

    # ---- how it is done -------------------------------------------------------------------------

    @replaceable
    def update_ranges(self, ranges: list[Range]) -> None:
        """`update` for each block of each range. What changes from step to step comes as numbers;
        on a GPU as arrays of one, in which a step recorded and replayed (graph/) finds the new."""
        buffer = self.buffer
        factor, done, clip = (self.control[i : i + 1] for i in (LR_FACTOR, STEP, CLIP))
        if namespace(buffer.values) is np:
            factor, done, clip = factor.item(), int(done.item()), clip.item()
        else:
            factor, clip = factor.astype(buffer.dtype), clip.astype(buffer.dtype)
        for start, stop, lr, decay in ranges:
            for part in blocks(buffer.values, start, stop):  # which fit a cache
                w, *state = (array[part] for array in (buffer.values, *self.state.values()))
                g, rate = buffer.gradients[part] * clip, lr * factor
                if self.update(w, g, state, rate, decay, done + 1) is not None:
                    raise TypeError(f"{type(self).__name__}.update returns nothing: write w -= ...")
            if buffer.low is not None:  # the same again in two bytes
                buffer.refresh(start, stop)

    def update(self, w: Array, g: Array, state: list[Array], lr: Any, decay: float, t: Any) -> Any:
        """Change w and state in place, for one block of a range; g, the clipped gradient, is yours.
        lr: the learning rate times its factor. t: the number of this step, from 1. Both are
        numbers, or arrays (1,) on a GPU: no `if` and no float() of them."""
        raise TypeError(f"{type(self).__name__} has no update")

    def _active_ranges(self) -> list[Range]:
        """Stretches of the buffer with gradients and equal settings, as long as possible."""
        has_grad = [*map(_has_grad, self.parameters)]
        if self._ranges is None or self._ranges[0] != (self.changes, has_grad):
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
            self._ranges = (self.changes, has_grad), ranges
        return self._ranges[1]


@replaceable
def count_step(control: Array, counters: Array) -> None:
    """One step more, unless the gradients were not finite; for random draws, counters[0], in any
    case. The next is not clipped so far."""
    control[STEP : STEP + 1] += control[FINITE : FINITE + 1]
    control[CLIP] = control[FINITE] = 1
    counters[:1] += np.uint64(1)
