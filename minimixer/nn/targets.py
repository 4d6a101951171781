"""What a loss compares scores with: the class of each example, or a distribution over the classes.

>>> import numpy as np
>>> from minimixer.nn.loss import CrossEntropy
>>> from minimixer.nn.targets import checked_target
>>> checked_target(CrossEntropy, np.zeros((2, 10), "float32"), [3, 7])
array([3, 7])
>>> checked_target(CrossEntropy, np.zeros((2, 10), "float32"), [3, 10])
Traceback (most recent call last):
ValueError: cross_entropy: class indices from 3 to 10 for 10 classes; they must lie in 0..9
"""

from typing import Any

import numpy as np

from ..engine.arrays import Array, device_of, is_array, namespace, native, same_device, to_device
from ..engine.autograd import Function
from ..engine.forms import current_form
from ..engine.precision import FLOAT_DTYPES, wide


def checked_target(loss: type[Function], z: Any, target: Any) -> Array:
    """The target as an array where z (B, K) lies: (B,) class indices, or (B, K) distributions in
    the dtype that z is computed in. Errors as `cross_entropy` names them; `loss` is its Function.
    """
    if not is_array(z):
        raise TypeError(f"cross_entropy: logits must be a Tensor or an array, got {z!r:.60}")
    z, target = native(z), native(target if is_array(target) else np.asarray(target))
    dtype = wide(z.dtype)
    if z.ndim != 2 or 0 in z.shape:
        raise ValueError(f"cross_entropy: logits must be (B, K) and not empty, got {z.shape}")
    if target.shape not in (z.shape[:1], z.shape):
        raise ValueError(
            f"cross_entropy: for logits {z.shape} the target must be {z.shape[:1]} class indices "
            f"or {z.shape} distributions, got {target.shape}"
        )
    # A look at what lies on a GPU would make the GPU wait: its kernel answers with NaN instead.
    on_gpu = namespace(target) is not np and same_device(target, z)
    unchecked = on_gpu and current_form(loss, target) is not None
    if target.ndim == 1:
        if target.dtype.kind not in "iu":
            raise TypeError(f"cross_entropy: class indices must be integers, got {target.dtype}")
        if unchecked:
            return target
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= z.shape[1]:
            raise ValueError(
                f"cross_entropy: class indices from {low} to {high} for {z.shape[1]} classes; "
                f"they must lie in 0..{z.shape[1] - 1}"
            )
        return to_device(target, device_of(z))
    if target.dtype not in FLOAT_DTYPES:
        raise TypeError(f"cross_entropy: distributions must be float32 or 64, got {target.dtype}")
    if unchecked:
        return target.astype(dtype, copy=False)
    sums = target.sum(axis=-1)
    smallest, least, most = float(target.min()), float(sums.min()), float(sums.max())
    if not (smallest >= 0 and least >= 1 - 1e-4 and most <= 1 + 1e-4):
        raise ValueError(
            "cross_entropy: each row of the target must be >= 0 and sum to 1; the smallest entry "
            f"is {smallest:g}, the sums go from {least:g} to {most:g}"
        )
    return to_device(target, device_of(z)).astype(dtype, copy=False)
