"""LayerNorm of rows of three numbers, in space: onto a plane, onto a circle; and its gradients.

All points, y and dx, are the engine's. The plane is that of rows whose mean is 0, the circle on it
that of rows whose variance is 1 too, radius sqrt(3). `flat` looks down on it along (1, 1, 1).
"""

import numpy as np
from picture import Picture, n

from minimixer import Tensor
from minimixer import functional as F

ONES = np.ones(3)
NORMAL = ONES / np.sqrt(3)
RIGHT = np.array([1, -1, 0]) / np.sqrt(2)  # two directions within the plane
UP = np.cross(NORMAL, RIGHT)


def direction(degrees: float) -> np.ndarray:
    """Of length 1, in the plane."""
    return np.cos(np.radians(degrees)) * RIGHT + np.sin(np.radians(degrees)) * UP


def circle() -> np.ndarray:
    return np.sqrt(3) * np.array([direction(degrees) for degrees in range(0, 361, 3)])


def layer_norm(x, dy=None):
    """x (rows, 3) -> y, and dx for the gradient dy of y."""
    leaf = Tensor(np.array(x, "float64"), requires_grad=True)
    y = F.layer_norm(leaf, Tensor(ONES), Tensor(0 * ONES))
    if dy is None:
        return y.data
    y.backward(np.array(dy, "float64"))
    return y.data, leaf.grad


def draw() -> dict[str, str]:
    return {"layer_norm.svg": in_space(), "layer_norm_gradients.svg": flat()}


# ---- from the side ------------------------------------------------------------------------------

# The picture's axes in space: the plane is seen from 24 degrees above, (1, 1, 1) points up.
TILT = np.radians(24)


def seen(points) -> np.ndarray:
    """(..., 3) -> (..., 2), in pixels."""
    points = np.asarray(points, "float64")
    across, deep, high = points @ RIGHT, points @ UP, points @ NORMAL
    x = 220 + 62 * across
    y = 212 - 62 * (high * np.cos(TILT) + deep * np.sin(TILT))
    return np.stack([x, y], -1)


def in_space() -> str:
    picture = Picture(
        352,
        "Rows of three numbers as points in space. Taking the mean off moves each along (1, 1, 1) "
        "onto a plane; dividing by the standard deviation moves it out or in to a circle of radius "
        "root 3. All rows on one half plane that ends in the line of (1, 1, 1) land on one point.",
    )
    picture.text(220, 28, "LayerNorm of three numbers", "bold")
    corners = [3.9 * direction(angle) for angle in (-65, 35, 115, 215)]
    picture.path(polygon(seen(corners)), "shade")
    axis = seen([-0.9 * NORMAL, 2.6 * NORMAL])
    picture.path(f"M{n(axis[0, 0])} {n(axis[0, 1])} L{n(axis[1, 0])} {n(axis[1, 1])}",
                 "line dashed", tip=True)  # fmt: skip
    picture.text(axis[1, 0] + 10, axis[1, 1] + 8, "(1, 1, 1)", "small left")
    picture.circle(220, 212, 62 * np.sqrt(3), "thin")  # the sphere, from outside
    picture.curve(*seen(circle()).T, "mark")
    places = ((15, 3.1, 1.0), (195, 3.0, 0.5), (195, 0.9, 0.8), (318, 0.75, 0.75), (70, 0.6, 0.9))
    x = np.array([radius * direction(angle) + mean for angle, radius, mean in places])
    y = layer_norm(x)
    for before, after in zip(x, y, strict=True):
        (x1, y1), (x2, y2), (x3, y3) = seen([before, before - before.mean(), after])
        picture.arrow(x1, y1, x2, y2, "forth")
        picture.arrow(x2, y2, x3, y3, "back")
        picture.circle(x1, y1, 4.5, "minus")
    for x3, y3 in seen(y):
        picture.circle(x3, y3, 4.5, "plus")
    picture.text(20, 334, "take the mean off", "forth left bold")
    picture.text(420, 334, "divide by sigma", "back right bold")
    picture.text(356, 276, "mean 0", "small left")
    return picture.svg()


# ---- from above ---------------------------------------------------------------------------------


def above(points) -> np.ndarray:
    points = np.asarray(points, "float64")
    return np.stack([220 + 72 * (points @ RIGHT), 222 - 72 * (points @ UP)], -1)


def flat() -> str:
    """Three rows in one direction from the middle, near and far; one dy."""
    picture = Picture(
        398,
        "The same plane seen from above. Whatever gradient arrives at a point of the circle, what "
        "goes on to x lies along the circle's tangent: nothing along (1, 1, 1), nothing outwards. "
        "Rows farther out get the same direction, shorter.",
    )
    picture.text(220, 28, "what goes back: along the circle only", "bold")
    picture.curve(*above(circle()).T, "mark")
    picture.circle(220, 222, 3, "ink")
    dy = np.array([0.75, -0.45, 0.3])
    for degrees, radii in ((100, (1.0, 2.2)), (225, (0.9,)), (15, (1.15, 2.35))):
        outwards = direction(degrees)
        edge = above(2.6 * outwards)
        picture.path(f"M220 222 L{n(edge[0])} {n(edge[1])}", "thin dashed")
        x = np.outer(radii, outwards) + 0.7
        y, dx = layer_norm(x, np.tile(dy, (len(radii), 1)))
        (x1, y1), (x2, y2) = above([y[0], y[0] + dy])
        picture.arrow(x1, y1, x2, y2, "line")
        picture.circle(x1, y1, 4.5, "plus")
        for point, gradient in zip(x, dx, strict=True):
            (x1, y1), (x2, y2) = above([point, point + gradient])
            picture.arrow(x1, y1, x2, y2, "back")
            picture.circle(x1, y1, 4.5, "minus")
    picture.text(20, 382, "dy, the same for all", "small left")
    picture.text(420, 382, "dx", "back right bold")
    return picture.svg()


def polygon(points) -> str:
    return "M" + " ".join(f"{n(x)} {n(y)}" for x, y in points) + "z"
