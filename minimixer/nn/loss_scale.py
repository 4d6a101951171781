"""float16's range: gradients are scaled up, by as much as they bear.

float16 holds nothing below 6e-8, and gradients of single activations are often smaller. So the
gradient is multiplied by a power of two where it enters the float16 part of a model, and divided
by it where it leaves, at the Parameters (Micikevicius et al. 2018, "loss scaling"). How large may
the power be? When a gradient overflows, the optimizer skips the step and the scale is halved; after
1000 good steps it is doubled. bfloat16 has float32's range and needs none of this.

>>> import numpy as np
>>> from minimixer.nn.loss_scale import adjust_scale
>>> state = np.array([1024.0, 7.0])          # the scale, and how many steps it has held
>>> adjust_scale(state, np.array([0.0]))     # a step that was not finite
>>> state
array([512.,   0.])
"""

from typing import Any

import numpy as np

from ..engine.arrays import Array, is_array, namespace
from ..engine.autograd import Function
from ..engine.dispatch import replaceable
from ..engine.tensor import Tensor

FINITE = 3  # the place in an optimizer's `control` that says whether its gradients are
SCALE_HOLDS = 1000  # good steps after which the scale is doubled
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-16, 2.0**24


class ScaleGradient(Function):
    """y = x, dx = scale dy.

    Stands where gradients enter the float16 part of a model.
    """

    takes_numbers = False

    def forward(self, x: Array, scale: Array) -> Array:
        self.scale = scale
        return x

    def backward(self, dy: Array) -> Array:
        return dy * self.scale.astype(dy.dtype).reshape(())


def scale_gradient(x: Any, scale: Array) -> Tensor:
    """x, whose gradient will be multiplied by `scale`, an array (1,) on x's device (TypeError)."""
    if not is_array(scale):
        raise TypeError(f"scale_gradient: scale must be an array of one number, got {scale!r:.60}")
    return ScaleGradient.apply(x, scale=scale)


def unscaled(gradient: Array, read_as: Any, buffer: Any) -> Array:
    """The gradient of a Parameter, as it arrives: divided by the scale if float16 read it."""
    if read_as == np.float16 and buffer.scaled:
        return gradient / buffer.loss_scale[:1].astype(buffer.dtype)
    return gradient


@replaceable
def update_if_finite(optimizer: Any, ranges: Any) -> None:
    """optimizer.update_ranges, unless a gradient is infinite or NaN; then adjust the scale. A GPU
    does not say so before it must: the update is made, and all put back as it was."""
    norm = optimizer.gradient_norm()
    xp, control = namespace(norm), optimizer.control
    control[FINITE] = xp.isfinite(norm)
    if xp is np:
        if control[FINITE]:
            optimizer.update_ranges(ranges)
    else:
        arrays = [optimizer.buffer.values, *optimizer.state.values()]
        before = [array.copy() for array in arrays]
        optimizer.update_ranges(ranges)
        for array, old in zip(arrays, before, strict=True):
            xp.copyto(array, old, where=control[FINITE] == 0)
        optimizer.buffer.refresh(0, optimizer.buffer.size)
    adjust_scale(optimizer.buffer.loss_scale, control[FINITE : FINITE + 1])


def adjust_scale(state: Array, finite: Array) -> None:
    """Bring state (2,), scale and steps held, up to date after a step whose gradients were
    `finite` (1,), 1 or 0."""
    xp, (scale, held) = namespace(state), (state[:1], state[1:])
    now_held = (held + 1) * finite
    doubled = now_held >= SCALE_HOLDS
    doubled &= scale < LARGEST_SCALE
    scale *= xp.where(finite > 0, xp.where(doubled, 2.0, 1.0), 0.5)
    scale[...] = xp.maximum(scale, SMALLEST_SCALE)
    held[...] = xp.where(doubled, 0.0, now_held)
