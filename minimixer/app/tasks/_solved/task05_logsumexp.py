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
    z = check.draw(4, 4)
    e = np.exp(z)
    p = e / e.sum(axis=-1, keepdims=True)
    check.compare("y", check.forward(task.LogSumExp, z), np.log(e.sum(axis=-1)), {
        "y is the sum over all rows: sum along the last axis": np.log(e.sum()),
        "y is summed along the first axis: it must be the last": np.log(e.sum(axis=0)),
        "y has an axis of length 1 left: take it away": np.log(e.sum(axis=-1, keepdims=True)),
        "the maximum was taken off and not added again": np.log(e.sum(axis=-1)) - z.max(axis=-1),
    })  # fmt: skip
    for large in (1000.0, -1000.0):
        found = check.forward(task.LogSumExp, z + large)
        check.expect(np.isfinite(found).all(),
                     f"y is {found[0]} for scores around {large:g}: e^{large:g} is no number that "
                     "fits; take the largest score off first")  # fmt: skip
        check.compare(f"y, for scores around {large:g},", found, np.log(e.sum(axis=-1)) + large)
    far = np.array([[1000.0, -1000, 0, 1], [-1000, -1001, -999, -1000], [3, 1000, 1000, -1000]])
    check.compare("y, for rows of very different scores,", check.forward(task.LogSumExp, far),
                  np.logaddexp.reduce(far, axis=-1))  # fmt: skip
    _, dy, (dz,) = check.both_ways(task.LogSumExp, z)
    check.compare("dz", dz, dy[:, None] * p, {
        "dz lacks dy, the gradient that arrives": p,
        "each column of p is multiplied by a row's dy: dy[..., None] gives dy its axis again":
            dy * p,
        "dz is e^z without the sum below": dy[:, None] * e,
        "dz has the softmax of all scores together; each row has its own":
            dy[:, None] * e / e.sum(),
    })  # fmt: skip
    _, dy, (dz,) = check.both_ways(task.LogSumExp, z + 1000)
    check.expect(np.isfinite(dz).all(), "dz is not finite for scores around 1000: compute p from "
                 "the shifted scores too")  # fmt: skip
    _, dy, (dz,) = check.both_ways(task.LogSumExp, far)
    shifted = np.exp(far - far.max(axis=-1, keepdims=True))
    check.compare("dz, for rows of very different scores,", dz,
                  dy[:, None] * shifted / shifted.sum(axis=-1, keepdims=True))  # fmt: skip
    for shape in (4, 4), (3,), (2, 3, 4), (2, 1, 3):
        z = check.draw(*shape)
        right = np.log(np.exp(z).sum(axis=-1))
        check.compare(f"y, for z {shape},", check.forward(task.LogSumExp, z), right)
        check.both_dtypes(task.LogSumExp, z)
