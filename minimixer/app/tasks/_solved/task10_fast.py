"""Task 10: make this operation fast without changing a bit. About 20 minutes.

`smooth` weighs each row of x (T, C) and those behind it with the numbers w (K,), in loops of
Python: y[t, c] = w[0] x[t, c] + w[1] x[t + 1, c] + ... Write `smooth_fast`, ten times as fast or
more, whose result has the same bits. Rounding depends on the order in which numbers are added, so
keep that order: first w[0] x[t, c], to it w[1] x[t + 1, c], and so on, for any T, C and K <= T. x
and w are of one dtype, float32 or float64.

Read: minimixer/kernels/__init__.py (what fast forms are, and what they must keep),
docs/performance.md.
"""

import numpy as np


def smooth(x, w):
    """x (T, C), w (K,) -> (T - K + 1, C). Leave it as it is: it says what is to be computed."""
    rows, channels = len(x) - len(w) + 1, x.shape[1]
    y = np.empty((rows, channels), x.dtype)
    for t in range(rows):
        for c in range(channels):
            total = w[0] * x[t, c]
            for k in range(1, len(w)):
                total = total + w[k] * x[t + k, c]
            y[t, c] = total
    return y


def smooth_fast(x, w):
    # solution: write smooth_fast, which returns what smooth does
    rows = len(x) - len(w) + 1
    y = w[0] * x[:rows]
    for k in range(1, len(w)):
        y += w[k] * x[k : k + rows]
    return y
    # end of solution


# ---- what follows stays in minimixer -------------------------------------------------------------

HINTS = (
    "There are three loops. In which of them does one turn need the result of the turn before? "
    "Only that one must stay in Python.",
    "Keep the loop over k. Its turn multiplies a whole block of rows, x[k : k + rows], by the "
    "number w[k], and adds it to all of y; the turn for k = 0, before the loop, makes y.",
    "y = w[0] * x[:rows]; then for k in range(1, len(w)): y += w[k] * x[k : k + rows]. A matrix "
    "product would be about as fast, but adds in an order of its own.",
)


def test(task, check) -> None:
    for dtype in ("float32", "float64"):
        for rows, channels, taps in (4, 3, 1), (9, 5, 9), (60, 7, 13), (60, 1, 13), (99, 1, 99):
            x = check.draw(rows, channels).astype(dtype)
            w = check.draw(taps).astype(dtype)
            given, right = (x.copy(), w.copy()), smooth(x, w)
            found = task.smooth_fast(x, w)
            check.expect((x == given[0]).all() and (w == given[1]).all(),
                         "smooth_fast writes into what it was given")  # fmt: skip
            check.expect(isinstance(found, np.ndarray) and found.dtype == right.dtype,
                         f"the result must be an array of {dtype}")  # fmt: skip
            check.compare("y", found, right, {
                "the first row gets the last weight: w is turned around, as convolutions do":
                    smooth(x, w[::-1]),
            }, 1e-3, 1e-4)  # fmt: skip
            differ = int((found != right).sum())
            check.expect(not differ, f"for x {x.shape}, w {w.shape}, {differ} of {right.size} "
                         "numbers differ in their last bits: they are added in another order than "
                         "in smooth. (NumPy's sum and einsum choose theirs by the shape)"
                         )  # fmt: skip
    zeros, minus = np.zeros((4, 3)), np.array([-1.0])
    check.expect(np.signbit(task.smooth_fast(zeros, minus)).all(), "y is 0.0 where smooth gives "
                 "-0.0, which has other bits: begin with w[0] x, and not with 0")  # fmt: skip
    x, w = check.draw(500, 16).astype("float32"), check.draw(9).astype("float32")
    ratio = check.times_as_fast(lambda: smooth(x, w), lambda: task.smooth_fast(x, w))
    check.expect(ratio >= 10, f"smooth_fast is {ratio:.1f} times as fast as smooth, and should be "
                 "10 times: Python still goes through too many numbers one by one")  # fmt: skip
