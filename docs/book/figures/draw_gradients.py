"""A chain of four steps, its Jacobians, and their product begun at either end.

The chain is a real one: linear, GELU, linear, softmax cross-entropy, with random weights. Each row
of a Jacobian is one backward of the engine, from one output. Both products are multiplied out here,
and compared with what backward says of the whole.
"""

import numpy as np
from picture import Picture

from minimixer import Tensor
from minimixer import functional as F

CELL = 9


def jacobian(step, x: np.ndarray) -> np.ndarray:
    """All dy[j] / dx[i] of y = step(x), (outputs, inputs): a backward for each output."""
    rows = []
    for j in range(step(Tensor(x)).size):
        leaf = Tensor(x, requires_grad=True)
        step(leaf).reshape(-1)[j].backward()
        rows.append(leaf.grad)
    return np.array(rows)


def chain() -> tuple[list, np.ndarray]:
    """The steps, from x on, and x."""
    rng = np.random.default_rng(3)
    w1, w2 = rng.standard_normal((8, 8)) / 2, rng.standard_normal((8, 4)) / 2
    steps = [
        lambda x: F.linear(x, Tensor(w1)),
        F.gelu,
        lambda a: F.linear(a, Tensor(w2)),
        lambda z: F.cross_entropy(z.reshape(1, 4), [1]),
    ]
    return steps, rng.standard_normal(8)


def products(jacobians: list[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """jacobians[-1] ... jacobians[0], begun at jacobians[0] (the right): each result on the way,
    and how many multiplications it took."""
    result, results, counts = jacobians[0], [], []
    for matrix in jacobians[1:]:
        counts.append(matrix.shape[0] * matrix.shape[1] * result.shape[1])
        result = matrix @ result
        results.append(result)
    return results, counts


def products_from_the_left(jacobians: list[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """The same, begun at jacobians[-1], a row."""
    row, results, counts = jacobians[-1], [], []
    for matrix in jacobians[-2::-1]:
        counts.append(row.shape[0] * row.shape[1] * matrix.shape[1])
        row = row @ matrix
        results.append(row)
    return results, counts


def draw() -> dict[str, str]:
    steps, x = chain()
    jacobians, value = [], x
    for step in steps:
        jacobians.append(jacobian(step, value))
        value = step(Tensor(value)).data
    leaf = Tensor(x, requires_grad=True)
    result = leaf
    for step in steps:
        result = step(result)
    result.backward()

    forth, forth_counts = products(jacobians)
    back, back_counts = products_from_the_left(jacobians)
    assert np.allclose(forth[-1][0], leaf.grad) and np.allclose(back[-1][0], leaf.grad)

    picture = Picture(
        436,
        "The gradient of a loss is a product of four Jacobians. Begun at the right it takes "
        f"{sum(forth_counts)} multiplications, matrix by matrix; begun at the left, where a row "
        f"meets one matrix after another, {sum(back_counts)}. The result is the same row.",
    )
    names = ["dL/dz", "dz/da", "da/dy", "dy/dx"]
    picture.text(220, 28, "dL/dx is a product of Jacobians", "bold")
    left, middle = 42, 98
    for name, matrix in zip(names, jacobians[::-1], strict=True):
        height, width = (size * CELL for size in matrix.shape)
        picture.table(left, middle - height / 2, matrix, CELL)
        picture.text(left + width / 2, middle - height / 2 - 8, name, "small")
        left += width + 35
        if name != "dy/dx":
            picture.text(left - 17, middle + 5, "\N{MULTIPLICATION SIGN}")
    _row(picture, 180, "begun at the right, with x", forth, forth_counts, names[1::-1])
    _row(picture, 336, "begun at the left, with L", back, back_counts, names[2:])
    return {"gradients.svg": picture.svg()}


def _row(picture, top, words, results, counts, factors):
    """One way through: every result, and how many multiplications it took."""
    picture.path(f"M20 {top - 22} H420", "thin")
    picture.text(20, top + 4, words, "bold left")
    picture.text(420, top + 4, f"{sum(counts):,} multiplications", "right")
    middle = top + 48 + len(results[0]) * CELL / 2
    for i, (matrix, count) in enumerate(zip(results, counts, strict=True)):
        left, height = 34 + 150 * i, len(matrix) * CELL
        picture.table(left, middle - height / 2, matrix, CELL)
        picture.text(left + 36, middle - height / 2 - 8, f"{count}", "small")
        if i:
            picture.arrow(left - 66, middle, left - 10, middle)
            picture.text(left - 40, middle - 8, factors[i - 1], "small")
    picture.text(34 + 300 + 36, middle + CELL / 2 + 19, "dL/dx")
