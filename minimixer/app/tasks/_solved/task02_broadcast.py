"""Task 2: broadcasting undone. About 10 minutes.

y = (x - shift) scale, where x (..., C) may have any number of axes before its last, also none, and
shift and scale are (C,): NumPy repeats them for every row. `forward` is there. Write `backward`: it
returns dx, dshift and dscale, each of the shape of its input.

Read: minimixer/engine/ops.py (its opening lines, and sum_to_shape, which undoes any broadcast; here
you know which axes were repeated, and write the sum yourself).
"""

from minimixer import Function


class Standardise(Function):
    """y = (x - shift) scale"""

    def forward(self, x, shift, scale):
        self.shifted, self.scale = x - shift, scale
        return self.shifted * scale

    def backward(self, dy):
        # solution: write backward: dx, dshift and dscale
        rows = tuple(range(dy.ndim - 1))  # all axes but the last
        dx = dy * self.scale
        return dx, -dx.sum(axis=rows), (dy * self.shifted).sum(axis=rows)
        # end of solution


# ---- what follows stays in minimixer -------------------------------------------------------------

HINTS = (
    "Forget the shapes first: if all were single numbers, what would the three gradients be? Then: "
    "into how many elements of y does one number of shift go?",
    "shift[j] goes into y[i, j] for every row i, so its gradient is the sum over i of what each "
    "y[i, j] sends back, -dy[i, j] scale[j]. The same for scale, with x[i, j] - shift[j].",
    "tuple(range(dy.ndim - 1)) are all axes but the last; .sum(axis=...) takes such a tuple. dx "
    "needs no sum: each x[i, j] is used once.",
)


def test(task, check) -> None:
    for shape in (4, 3), (2, 4, 3), (2, 3, 4, 5), (3,):
        x, shift, scale = (check.draw(*s, seed=i) for i, s in enumerate((shape, *2 * [shape[-1:]])))
        y, dy, (dx, dshift, dscale) = check.both_ways(task.Standardise, x, shift, scale)
        check.compare("y", y.data, (x - shift) * scale)
        check.compare(f"dx, for x {shape},", dx, dy * scale, {
            "dx lacks scale: y grows by scale where x grows by 1": dy,
            "dx is summed; but each number of x is used once": (dy * scale).sum(axis=0),
        })  # fmt: skip
        rows = tuple(range(x.ndim - 1))
        for name, found, terms in (
            ("dshift", dshift, -dy * scale), ("dscale", dscale, dy * (x - shift))
        ):  # fmt: skip
            check.compare(f"{name}, for x {shape},", found, terms.sum(axis=rows), {
                f"{name} is not summed over the rows: it has dy's shape, and must have its own":
                    terms,
                f"{name} is summed over all axes; the last must stay": terms.sum(),
                f"{name} is summed over one axis; x may have several before its last":
                    terms.sum(axis=0),
                f"{name} is summed over two axes; x may have any number before its last":
                    terms.sum(axis=(0, -2)) if len(shape) > 2 else terms.sum(),
                f"{name} is a mean; gradients of what is used many times add":
                    terms.mean(axis=rows),
                f"{name} has the wrong sign": -terms.sum(axis=rows),
                "dscale has x in it, where forward multiplies scale by x - shift":
                    (dy * x).sum(axis=rows),
                "dshift lacks scale: forward multiplies by it after it takes shift off":
                    -dy.sum(axis=rows),
            })  # fmt: skip
        check.both_dtypes(task.Standardise, x, shift, scale)
