"""Softmax cross-entropy: the number that training makes small.

The network gives a row of scores z, one for each of K classes (logits); p = softmax(z) reads them
as probabilities. Against a target distribution t (for a class label: 1 there, 0 elsewhere; then it
is -log p of the label: 0 where p is 1, and without bound as p nears 0) the loss is

    p[k] = e^z[k] / sum_j e^z[j]
    loss = -sum_k t[k] log p[k] = log sum_j e^z[j] - sum_k t[k] z[k],       as sum_k t[k] = 1.

Scores that say nothing, all equal, give log K. The gradient is as simple as can be: d/dz[k] of the
first term is e^z[k] / sum_j e^z[j] = p[k], so

    dz = p - t

for one row; the mean over B rows divides that by B, which is 2 in the example.

Subtracting a number m from all of z changes neither p nor the loss: above and below in p all is e^m
times smaller, and both terms of the loss are smaller by m. With m = max z nothing overflows (e^1000
is infinite, even in float64), and z's small differences do not drown in its size. As p = 1 takes an
infinite score, scores are driven up without end; label smoothing, (1 - smoothing) t + smoothing / K
in place of t, gives them an end (Szegedy et al. 2016).

>>> from minimixer import Tensor
>>> from minimixer.nn.loss import cross_entropy
>>> logits = Tensor([[2.0, 0.0], [0.0, 0.0]], requires_grad=True)
>>> loss = cross_entropy(logits, [0, 1])
>>> loss.backward()
>>> round(loss.item(), 4)
0.41
>>> print(logits.grad.round(3))
[[-0.06  0.06]
 [ 0.25 -0.25]]

Now you can do Task 5, Task 8. Next: `layer_norm.py`, LayerNorm, its gradient derived by hand.
"""

from typing import Any

import numpy as np

from ..engine.arrays import Array, namespace
from ..engine.autograd import Function, Variable, constant
from ..engine.checks import check_number  # in a range; from 0 on, if none is given
from ..engine.tensor import Tensor
from .targets import checked_target  # labels or distributions, as an array that fits z

REDUCTIONS = ("mean", "sum", "none")


def shifted_softmax(z: Array, axis: int = -1) -> tuple[Array, Array, Array]:
    """(z - max z, softmax(z), log sum_j e^(z[j] - max z)) along `axis`, all new arrays; the last
    keeps `axis` as 1, and is float64: where p is near 1 the sum is 1 and something tiny. Rows of
    -inf alone, or with an inf, give NaN."""
    xp = namespace(z)
    shifted = z - z.max(axis=axis, keepdims=True)
    p = xp.exp(shifted)
    log_total = xp.log(p.sum(axis=axis, keepdims=True, dtype=np.float64))
    p /= p.sum(axis=axis, keepdims=True)
    return shifted, p, log_total


class CrossEntropy(Function):
    """loss = log sum_j e^z[j] - sum_k t[k] z[k] for each row: dz = p - t."""

    quiet = True

    def forward(self, z: Array, target: Array, smoothing: float, reduction: str) -> Array:
        xp = namespace(z)
        batch, classes = z.shape
        shifted, p, log_total = shifted_softmax(z)
        if target.ndim == 1:  # class labels: t is 1 there, and need not be written out
            rows = xp.arange(batch)
            picked = shifted[rows, target]
        else:  # a class of weight 0 costs nothing, not even if its score is -infinity
            picked = (target * xp.where(target > 0, shifted, 0)).sum(axis=-1)
        if smoothing:
            picked = (1 - smoothing) * picked + smoothing * shifted.mean(axis=-1)
        loss = log_total[:, 0] - picked
        if self.needs[0]:  # p - t, in p's place
            if target.ndim == 1:
                p[rows, target] -= 1 - smoothing
            else:
                p -= (1 - smoothing) * target
            if smoothing:
                p -= smoothing / classes
            self.dz = p
        self.scale: float = 1 / batch if reduction == "mean" else 1.0
        loss = loss if reduction == "none" else xp.asarray(loss.sum() * self.scale)
        return loss.astype(z.dtype)

    def backward(self, dloss: Array) -> Array:
        return self.dz * (dloss * self.scale)[..., None]


def cross_entropy(
    logits: Any, target: Any, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """-log of the probability that softmax(logits) gives to `target`.

    logits           (B, K), floating-point; float16 ones are computed with in float32
    target           (B,) class indices, integers, or (B, K) distributions; array or Tensor
    label_smoothing  in [0, 1)
    reduction        "mean" or "sum" -> (), "none" -> (B,)

    ValueError: shapes, indices outside 0..K-1 (on a GPU the loss may be NaN instead), distributions
    that are negative or do not sum to 1 (to 1e-4). TypeError: (B,) targets that are no integers, or
    (B, K) ones that are no floats."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"cross_entropy: reduction must be in {REDUCTIONS}, got {reduction!r}")
    label_smoothing = check_number("cross_entropy: label_smoothing", label_smoothing, 0, 1)
    z = logits.data if isinstance(logits, Variable) else logits
    target = checked_target(CrossEntropy, z, constant("cross_entropy: the target", target))
    return CrossEntropy.apply(logits, target=target, smoothing=label_smoothing, reduction=reduction)
