"""Task 3: a value used twice. About 10 minutes.

y[t] = x[t] x[t + 1] along the first axis: each number times its neighbour, so y is one row shorter
than x. `forward` is there. Write `backward`. Each x[t] goes into two elements of y, but for the
first and the last.

Read: minimixer/engine/backward.py (the first lines), minimixer/engine/autograd.py (what backward
may write into: only arrays that it made).
"""

import numpy as np

from minimixer import Function


class Neighbours(Function):
    """y[t] = x[t] x[t + 1]: x (T, ...) -> (T - 1, ...)"""

    def forward(self, x):
        self.x = x
        return x[:-1] * x[1:]

    def backward(self, dy):
        # solution: write backward, which returns dx
        dx = np.zeros_like(self.x)
        dx[:-1] += dy * self.x[1:]
        dx[1:] += dy * self.x[:-1]
        return dx
        # end of solution


# ---- what follows stays in minimixer -------------------------------------------------------------

HINTS = (
    "Write out y[0], y[1] and y[2]. In which of them does x[1] stand, and beside which number?",
    "x[t] stands in y[t], beside x[t + 1], and in y[t - 1], beside x[t - 1]; both send a part, and "
    "the parts add: dx[t] = dy[t] x[t + 1] + dy[t - 1] x[t - 1].",
    "Begin with dx = np.zeros_like(self.x). Then add dy * x[1:] into dx[:-1], and the other part "
    "into dx[1:], with +=.",
)


def test(task, check) -> None:
    for x in (check.draw(5, 3), check.draw(2), check.draw(3, 2, 4)):
        y, dy, (dx,) = check.both_ways(task.Neighbours, x)
        check.compare("y", y.data, x[:-1] * x[1:])
        none = np.zeros_like(x[:1])
        left = np.concatenate([dy * x[1:], none])  # from y[t], to the left of its neighbour
        right = np.concatenate([none, dy * x[:-1]])  # from y[t - 1]
        twice = left.copy()
        twice[1:] = right[1:]
        other = right.copy()
        other[:-1] = left[:-1]
        check.compare("dx", dx, left + right, {
            "dx has the part from y[t] alone; x[t] goes into y[t - 1] too": left,
            "dx has the part from y[t - 1] alone; x[t] goes into y[t] too": right,
            "each part is multiplied by x[t] itself; it must be the neighbour":
                np.concatenate([dy * x[:-1], none]) + np.concatenate([none, dy * x[1:]]),
            "the second part overwrites the first where both arrive: add it, with +=": twice,
            "the second part overwrites the first where both arrive: add it with +=": other,
        })  # fmt: skip
        check.both_dtypes(task.Neighbours, x)
