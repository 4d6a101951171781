"""Task 8: the Huber loss. About 15 minutes.

With r = x - target, and a = |r| its size, the loss is the mean over all elements of

    h = r^2 / 2                where a <= delta
    h = delta (a - delta / 2)  where a > delta

It is a squared error near 0; beyond delta it grows along a line, so that one number that is far
off does not decide alone (Huber 1964). Write `forward` and `backward`: the loss is one number, and
so is dloss; x and target both get a gradient, and delta, an option, none.

Read: minimixer/nn/loss.py (CrossEntropy: what forward can compute for backward, and where the mean
goes), minimixer/nn/more_loss.py (mse_loss).
"""

import numpy as np

from minimixer import Function


class Huber(Function):
    """x and target of one shape -> one number"""

    def forward(self, x, target, delta):
        # solution: write forward, which returns the loss
        r = x - target
        self.slope = np.clip(r, -delta, delta) / r.size
        return np.where(abs(r) <= delta, r * r / 2, delta * (abs(r) - delta / 2)).mean()
        # end of solution

    def backward(self, dloss):
        # solution: write backward, which returns dx and dtarget
        dx = dloss * self.slope
        return dx, -dx
        # end of solution


# ---- what follows stays in minimixer -------------------------------------------------------------

HINTS = (
    "Draw the loss of one r, and below it its slope. What is the slope at r = delta, from either "
    "side?",
    "The slope by r is r where |r| <= delta, and delta times the sign of r elsewhere: r clipped to "
    "[-delta, delta]. A mean over n elements divides it by n. x moves r by 1, target by -1.",
    "forward: self.slope = np.clip(r, -delta, delta) / r.size, and np.where(...).mean(). backward: "
    "dx = dloss * self.slope, and dtarget = -dx.",
)


def test(task, check) -> None:
    for shape, delta in CASES:
        forward(task, check, shape, delta)
    check.forward_is_right(backward, task, check)


CASES = ((4, 5), 0.7), ((7,), 1.6), ((2, 3, 4), 0.3)


def drawn(check, shape):
    x, target = check.draw(*shape) * 2, check.draw(*shape, seed=1)
    return x, target, x - target


def forward(task, check, shape, delta):
    x, target, r = drawn(check, shape)
    near = abs(r) <= delta
    each = np.where(near, r * r / 2, delta * (abs(r) - delta / 2))
    loss = check.forward(task.Huber, x, target, delta=delta)
    check.compare(f"the loss, for x {shape} and delta {delta},", loss, each.mean(), {
        "the loss is a sum; it must be the mean": each.sum(),
        "the loss is not summed up: it must be one number": each,
        "the loss jumps at delta: - delta / 2 is missing beyond it":
            np.where(near, r * r / 2, delta * abs(r)).mean(),
        "the loss is not halved near 0": np.where(near, r * r, delta * (abs(r) - delta / 2)).mean(),
        "the loss is quadratic everywhere": (r * r / 2).mean(),
        "beyond delta the factor delta is missing":
            np.where(near, r * r / 2, abs(r) - delta / 2).mean(),
        "beyond delta |r| is needed, where r is taken": np.where(
            near, r * r / 2, delta * (r - delta / 2)).mean(),
        "r is compared with delta where |r| should be": np.where(
            r <= delta, r * r / 2, delta * (abs(r) - delta / 2)).mean(),
    })  # fmt: skip


def backward(task, check):
    for shape, delta in CASES:
        back(task, check, shape, delta)


def back(task, check, shape, delta):
    x, target, r = drawn(check, shape)
    near, slope = abs(r) <= delta, np.clip(r, -delta, delta)
    _, dloss, (dx, dtarget) = check.both_ways(task.Huber, x, target, delta=delta)
    right = dloss * slope / r.size
    check.compare(f"dx, for x {shape} and delta {delta},", dx, right, {
        "dx is not divided by the number of elements, as the loss is": dloss * slope,
        "dx is divided by the number of rows; the mean is over all elements":
            dloss * slope / len(r),
        "dx lacks dloss, the gradient that arrives": slope / r.size,
        "dx has r beyond delta too: there the slope is delta or -delta": dloss * r / r.size,
        "dx has the wrong sign": -right,
        "dx is delta beyond delta, where it must have the sign of r":
            dloss * np.where(near, r, delta) / r.size,
        "dx has the sign of r beyond delta, and lacks the factor delta":
            dloss * np.where(near, r, np.sign(r)) / r.size,
        "dx is 0 beyond delta; there the loss still grows": dloss * np.where(near, r, 0) / r.size,
    })  # fmt: skip
    check.compare("dtarget", dtarget, -right, {
        "dtarget has the wrong sign: the loss depends on x - target": right,
        "dtarget is 0; the target is an input like x": 0 * right,
    })  # fmt: skip
    check.both_dtypes(task.Huber, x, target, delta=delta)
