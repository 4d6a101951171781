"""Task 1: the gradient of a product. About 5 minutes.

y = a b c, for three arrays of one shape, element by element. `forward` is there. Write `backward`:
dy, the gradient of the loss by y, arrives; it returns da, db and dc, in the order of the inputs.
Some numbers in the arrays are 0.

In this task and all others: results have the dtype of the inputs, and forward and backward write
only into arrays that they made. (The engine's own Functions also ask self.needs which gradients are
wanted. Here all are: you may ignore it.)

Read: minimixer/engine/autograd.py (what a Function is), minimixer/engine/ops.py (Multiply).
"""

from minimixer import Function


class Product(Function):
    """y = a b c"""

    def forward(self, a, b, c):
        self.a, self.b, self.c = a, b, c  # kept for backward
        return a * b * c

    def backward(self, dy):
        # solution: write backward, which returns da, db and dc
        a, b, c = self.a, self.b, self.c
        return dy * b * c, dy * a * c, dy * a * b
        # end of solution


# ---- what follows stays in minimixer -------------------------------------------------------------

HINTS = (
    "Hold b and c still. When a grows by a little, by how much does y grow?",
    "dL/da = dL/dy dy/da, and dy/da = b c. Likewise for b and for c.",
    "da = dy * self.b * self.c; return the three with commas between them.",
)


def test(task, check) -> None:
    for shape in (2, 3), (4,), (2, 3, 5):
        factors = {name: check.draw(*shape, seed=ord(name)) for name in "abc"}
        for place, x in enumerate(factors.values()):
            x[..., place] = 0
        a, b, c = factors.values()
        y, dy, gradients = check.both_ways(task.Product, a, b, c)
        check.compare("y", y.data, a * b * c)
        expected = {"a": dy * b * c, "b": dy * a * c, "c": dy * a * b}
        for (name, right), found in zip(expected.items(), gradients, strict=True):
            check.compare(f"d{name}", found, right, {
                f"d{name} lacks dy, the gradient that arrives: multiply by it": right / dy,
                f"d{name} is y / {name} times dy, and 0 / 0 where {name} is 0: multiply by the "
                "other two instead": dy * y.data / factors[name],
                f"d{name} has {name} itself in it: dy/d{name} is the product of the other two":
                    dy * y.data,
                **{f"d{name} is d{other}: gradients come in the order of forward's inputs": wrong
                   for other, wrong in expected.items()},
            })  # fmt: skip
        check.both_dtypes(task.Product, a, b, c)
