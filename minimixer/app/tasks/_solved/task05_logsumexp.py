"""Task 5: logsumexp. About 15 minutes.

y = log sum_k e^z[k] along the last axis: z (..., K) -> (...). Where one z[k] is much larger than
the others, y is nearly that one: a smooth maximum. Write `forward` and `backward`. Scores of 1000
and of -1000 must give numbers, though e^1000 is infinite and log 0 too. What helps is a number m
that is subtracted from all of a row's scores before, and added to the result:

    log sum_k e^z[k] = m + log sum_k e^(z[k] - m),   as e^z[k] = e^m e^(z[k] - m).

Read: minimixer/nn/loss.py (its opening lines: where the same sum stands in the cross-entropy).
"""

import numpy as np

from minimixer import Function


class LogSumExp(Function):
    """y = log sum_k e^z[k]: (..., K) -> (...)"""

    def forward(self, z):
        # solution: write forward, which returns y
        largest = z.max(axis=-1, keepdims=True)
        e = np.exp(z - largest)
        total = e.sum(axis=-1, keepdims=True)
        self.p = e / total
        return (largest + np.log(total))[..., 0]
        # end of solution

    def backward(self, dy):
        # solution: write backward, which returns dz, of z's shape
        return dy[..., None] * self.p
        # end of solution


# ---- what follows stays in minimixer -------------------------------------------------------------

HINTS = (
    "Which m makes sure that no e^(z[k] - m) overflows, and that not all of them are 0? And by how "
    "much does y grow when z[k] grows by a little: what is the slope of a logarithm?",
    "m = max z, of each row its own: then the largest e^(z[k] - m) is 1. And dy/dz[k] = e^z[k] / "
    "sum_j e^z[j], the softmax p, which you can have from the same shifted numbers.",
    "z.max(axis=-1, keepdims=True) keeps the last axis, with length 1, so that each row loses its "
    "own m; y has lost that axis: [..., 0]. dz = dy[..., None] * p gives it to dy again, so that "
    "each row of p is multiplied by its own dy.",
)


def test(task, check) -> None:
    forward(task, check)
    check.forward_is_right(backward, task, check)


FAR = np.array([[1000.0, -1000, 0, 1], [-1000, -1001, -999, -1000], [3, 1000, 1000, -1000]])


def axes_explained(run, function, z):
    """What run(function, z) gives; where NumPy says of it that shapes do not fit, one sentence more
    on why. (z is oblong, so that one number a row fits no other way.)"""
    try:
        return run(function, z)
    except ValueError as error:
        if "broadcast" not in str(error):
            raise
        raise ValueError(
            f"{error}. One number for each row (a max, a sum, dy) needs a last axis of length 1 to "
            "meet its row: keepdims=True where it is made, or [..., None]"
        ) from error


def forward(task, check):
    z = check.draw(3, 5)
    e, top = np.exp(z), z.max(axis=-1)
    log_sum = np.log(e.sum(axis=-1)) - top  # of e^(z - top)
    crossed = top[:, None] + log_sum
    y = axes_explained(check.forward, task.LogSumExp, z)
    for wrong in crossed, crossed[:, 0], crossed.T, crossed[0]:
        check.expect(not check.fits(y, wrong, 1e-9, 1e-12), "one of max and sum has keepdims=True "
                     "and the other not: so each row's max meets the sums of all rows")  # fmt: skip
    check.compare("y", y, np.log(e.sum(axis=-1)), {
        "y is the sum over all rows: sum along the last axis": np.log(e.sum()),
        "y is summed along the first axis: it must be the last": np.log(e.sum(axis=0)),
        "y has an axis of length 1 left: take it away": np.log(e.sum(axis=-1, keepdims=True)),
        "the maximum was taken off and not added again": log_sum,
    })  # fmt: skip
    for large in (1000.0, -1000.0):
        found = check.forward(task.LogSumExp, z + large)
        check.expect(np.isfinite(found).all(),
                     f"y is {found[0]} for scores around {large:g}: e^{large:g} is no number that "
                     "fits; take the largest score off first")  # fmt: skip
        check.compare(f"y, for scores around {large:g},", found, np.log(e.sum(axis=-1)) + large)
    name = "y, for rows of very different scores,"
    check.compare(name, check.forward(task.LogSumExp, FAR), np.logaddexp.reduce(FAR, axis=-1), {
        "the largest of all scores is taken off every row; in a row far below it only e^-1000 is "
        "left, which is 0: take the largest of each row, along the last axis": far_with(FAR.max()),
        "a row's mean is taken off; its largest score may be far above that, and e^1000 is "
        "infinite: take the largest": far_with(FAR.mean(axis=-1, keepdims=True)),
    })  # fmt: skip
    for shape in SHAPES:
        z = check.draw(*shape)
        right = np.log(np.exp(z).sum(axis=-1))
        check.compare(f"y, for z {shape},", check.forward(task.LogSumExp, z), right)


SHAPES = (4, 4), (3,), (2, 3, 4), (2, 1, 3)


def far_with(m):
    """What FAR gives with another m than the right one."""
    return (m + np.log(np.exp(FAR - m).sum(axis=-1, keepdims=True)))[:, 0]


def backward(task, check):
    z = check.draw(3, 5)
    e = np.exp(z)
    p, shifted = e / e.sum(axis=-1, keepdims=True), e / e.max(axis=-1, keepdims=True)
    _, dy, (dz,) = axes_explained(check.both_ways, task.LogSumExp, z)
    rows = dy[:, None]
    check.compare("dz", dz, rows * p, {
        "dz lacks dy, the gradient that arrives": p,
        "dz is e^z without the sum below": rows * e,
        "dz is e^(z - m) without the sum below: p must sum to 1 in each row": rows * shifted,
        "dz has the softmax of all scores together; each row has its own": rows * e / e.sum(),
        "e^(z - m) is divided by the sum of all; each row has its own sum":
            rows * shifted / shifted.sum(),
        "dz has the softmax of each column: sum along the last axis": rows * e / e.sum(axis=0),
        "e^(z - m) is divided by the columns' sums: sum along the last axis":
            rows * shifted / shifted.sum(axis=0),
    })  # fmt: skip
    _, dy, (dz,) = check.both_ways(task.LogSumExp, z + 1000)
    check.expect(np.isfinite(dz).all(), "dz is not finite for scores around 1000: compute p from "
                 "the shifted scores too")  # fmt: skip
    _, dy, (dz,) = check.both_ways(task.LogSumExp, FAR)
    e = np.exp(FAR - FAR.max(axis=-1, keepdims=True))
    check.compare("dz, for rows of very different scores,", dz,
                  dy[:, None] * e / e.sum(axis=-1, keepdims=True))  # fmt: skip
    for shape in SHAPES:
        check.both_dtypes(task.LogSumExp, check.draw(*shape))
