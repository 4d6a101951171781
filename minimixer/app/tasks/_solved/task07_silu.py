"""Task 7: another activation, which keeps less. About 20 minutes.

y = x s(x) with the logistic function s(x) = 1 / (1 + e^-x): SiLU, or Swish (Hendrycks and Gimpel
2016, Elfwing et al. 2018, Ramachandran et al. 2017). Write `forward` and `backward`, of which
forward keeps x and nothing else: x is there anyway, as the result of the layer before, and what is
kept beside it costs memory until backward has come by. So backward computes s again. Inputs of 1000
and of -1000 must give numbers.

Read: minimixer/nn/functional.py (GELU, which keeps its slope), minimixer/nn/recompute.py (the
opening lines: forget and compute again).
"""

import numpy as np

from minimixer import Function


class SiLU(Function):
    """y = x / (1 + e^-x)"""

    def forward(self, x):
        # solution: write forward, which returns y, and keeps x alone
        self.x = x
        return x * (0.5 + 0.5 * np.tanh(x / 2))  # s(x), where e^-x might overflow
        # end of solution

    def backward(self, dy):
        # solution: write backward, which returns dx
        s = 0.5 + 0.5 * np.tanh(self.x / 2)
        return dy * s * (1 + self.x * (1 - s))
        # end of solution


# ---- what follows stays in minimixer -------------------------------------------------------------

HINTS = (
    "y is a product of two functions of x. And what is the slope of s, written with s alone?",
    "s' = s (1 - s), so y' = s + x s (1 - s). For s without overflow: which function of NumPy has "
    "the same shape as s, runs from -1 to 1 and never overflows?",
    "s(x) = 0.5 + 0.5 tanh(x / 2). forward: self.x = x; backward computes s from self.x once more, "
    "and returns dy * s * (1 + self.x * (1 - s)).",
)


def test(task, check) -> None:
    x = check.draw(3, 4) * 3
    s = 1 / (1 + np.exp(-x))
    forward(task, check, x, s)
    check.forward_is_right(backward, task, check, x, s)


def forward(task, check, x, s):
    check.compare("y", check.forward(task.SiLU, x), x * s, {
        "y is s(x); it must be x s(x)": s,
        "the sign of the exponent is wrong: s(x) nears 1 for large x": x * (1 - s),
    })  # fmt: skip
    for dtype in ("float64", "float32"):
        far = np.array(FAR, dtype)
        compare_far(check, "y", check.forward(task.SiLU, far), far, far * (far > 0))


FAR = -1000, -50, 50, 1000


def compare_far(check, name, found, x, right):
    for one, x_there in zip(found, x, strict=True):
        check.expect(np.isfinite(one), f"{name} is {one} for x = {x_there:g}: e^1000 is no number "
                     "that fits; compute s in another way")  # fmt: skip
    check.compare(f"{name}, for x far from 0,", found, right, rtol=1e-6, atol=1e-6)


def backward(task, check, x, s):
    _, dy, (dx,) = check.both_ways(task.SiLU, x)
    check.compare("dx", dx, dy * (s + x * s * (1 - s)), {
        "dx lacks dy, the gradient that arrives": s + x * s * (1 - s),
        "dx is dy, as if the slope were 1": dy,
        "dx has the slope of x alone, times s; s depends on x too": dy * s,
        "dx has the slope of s alone, times x; x is a factor too": dy * x * s * (1 - s),
        "dx is the slope of s, without x": dy * s * (1 - s),
        "the two parts of the product rule are multiplied; they add": dy * s * x * s * (1 - s),
    })  # fmt: skip
    for dtype in ("float64", "float32"):
        far = np.array(FAR, dtype)
        _, dy, (dx,) = check.both_ways(task.SiLU, far)
        compare_far(check, "dx", dx, far, dy * (far > 0))
    check.both_dtypes(task.SiLU, x)
    keeps_x_alone(task, check)


def keeps_x_alone(task, check):
    """By name where it is an attribute; by the memory that it takes wherever it is."""
    import tracemalloc

    x = check.Tensor(check.draw(200, 300), requires_grad=True)
    began = not tracemalloc.is_tracing()
    if began:
        tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        node = task.SiLU.apply(x).node  # y itself is dropped
        kept = (tracemalloc.get_traced_memory()[0] - before) / x.data.nbytes
    finally:
        if began:
            tracemalloc.stop()
    more = [f"self.{name}" for name, a in vars(node).items()
            if not (isinstance(a, np.ndarray) and np.shares_memory(a, x.data))]  # fmt: skip
    what = f" ({' and '.join(more)})" if more else ""
    check.expect(kept < 0.05, f"forward keeps {kept:.2g} times the memory of x beside x "
                 f"itself{what}: keep x alone, and let backward compute the rest again"
                 )  # fmt: skip
