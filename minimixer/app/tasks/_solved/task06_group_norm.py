"""Task 6: GroupNorm. About 40 minutes.

    y = gamma x_hat + beta,   x_hat = (x - mean) / sigma,   sigma^2 = variance + epsilon

x (S, B, C) are tokens, as everywhere in a Mixer. LayerNorm takes mean and variance over the C
channels of one token. GroupNorm (Wu and He 2018) divides the channels into groups of neighbours,
and takes them over all S tokens and the C / groups channels of one group of one image; the variance
is the mean of (x - mean)^2. gamma and beta (C,) have a number for each channel. Write `forward` and
`backward`; groups and epsilon are options. Derive dx on paper first: it is LayerNorm's derivation
with another kind of row.

Read: minimixer/nn/layer_norm.py (all of it).
"""

from minimixer import Function


class GroupNorm(Function):
    """x (S, B, C), gamma and beta (C,) -> (S, B, C)"""

    def forward(self, x, gamma, beta, groups, epsilon):
        # solution: write forward, which returns y
        tokens, batch, channels = x.shape
        rows = x.reshape(tokens, batch, groups, channels // groups)
        centred = rows - rows.mean(axis=(0, 3), keepdims=True)
        variance = (centred * centred).mean(axis=(0, 3), keepdims=True)
        self.sigma = (variance + epsilon) ** 0.5
        self.x_hat, self.gamma = centred / self.sigma, gamma
        return self.x_hat.reshape(x.shape) * gamma + beta
        # end of solution

    def backward(self, dy):
        # solution: write backward, which returns dx, dgamma and dbeta
        x_hat, dx_hat = self.x_hat, (dy * self.gamma).reshape(self.x_hat.shape)
        dgamma = (dy * x_hat.reshape(dy.shape)).sum(axis=(0, 1))
        dx = dx_hat - dx_hat.mean(axis=(0, 3), keepdims=True)
        dx -= x_hat * (dx_hat * x_hat).mean(axis=(0, 3), keepdims=True)
        dx /= self.sigma
        return dx.reshape(dy.shape), dgamma, dy.sum(axis=(0, 1))
        # end of solution


# ---- what follows stays in minimixer -------------------------------------------------------------

HINTS = (
    "Which shape must x have so that mean(axis=...) sees a group by itself? Then compare with "
    "LayerNorm's derivation: which of its lines say that a row has C numbers next to each other?",
    "With x as (S, B, groups, C / groups) and means over axes 0 and 3, dx is that of LayerNorm: "
    "dx = (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)) / sigma, dx_hat = gamma dy. "
    "dgamma and dbeta are sums over tokens and images, axes 0 and 1, for each channel.",
    "Keep x_hat and sigma in four axes. Backward: dx_hat = (dy * gamma).reshape(x_hat.shape), then "
    "the formula with x.mean(axis=(0, 3), keepdims=True) for mean(x), then reshape to dy.shape.",
)


def normal(x, axis, ddof=0, epsilon=0.1):
    variance = x.var(axis, keepdims=True, ddof=ddof)
    return (x - x.mean(axis, keepdims=True)) / (variance + epsilon) ** 0.5


def test(task, check) -> None:
    forward(task, check)
    check.forward_is_right(backward, task, check)


def drawn(check, *shape):
    return check.draw(*shape), check.draw(shape[-1]), check.draw(shape[-1], seed=1)


TOKENS, BATCH, GROUPS, SIZE = 3, 4, 2, 5
SHAPE, FOUR = (TOKENS, BATCH, GROUPS * SIZE), (TOKENS, BATCH, GROUPS, SIZE)
OPTIONS, OTHERS = dict(groups=GROUPS, epsilon=0.1), dict(groups=3, epsilon=0.5)


def forward(task, check):
    x, gamma, beta = drawn(check, *SHAPE)

    def scaled(x_hat):
        return x_hat.reshape(SHAPE) * gamma + beta

    rows = x.reshape(FOUR)
    y = check.forward(task.GroupNorm, x, gamma, beta, **OPTIONS)
    check.compare("y", y, scaled(normal(rows, (0, 3))), {
        "mean and variance are of each token; they must be over all tokens of an image":
            scaled(normal(rows, 3)),
        "mean and variance are of each channel; they must be over all of a group":
            scaled(normal(rows, 0)),
        "mean and variance are over all images; each image has its own":
            scaled(normal(rows, (0, 1, 3))),
        "mean and variance are over all channels; each group has its own":
            scaled(normal(rows, (0, 2, 3))),
        "groups are of neighbouring channels: reshape to (S, B, groups, C / groups)":
            scaled(normal(x.reshape(TOKENS, BATCH, SIZE, GROUPS), (0, 2))),
        "the variance is divided by n - 1; it must be by n": scaled(normal(rows, (0, 3), ddof=1)),
        "epsilon stands outside the root": scaled(
            (rows - rows.mean((0, 3), keepdims=True)) / (rows.std((0, 3), keepdims=True) + 0.1)),
        "epsilon is not added to the variance": scaled(normal(rows, (0, 3), epsilon=0)),
        "gamma and beta are not applied": normal(rows, (0, 3)).reshape(SHAPE),
    })  # fmt: skip
    far = (x + 1000).astype("float32")
    y = check.forward(task.GroupNorm, far, *[a.astype("float32") for a in (gamma, beta)], **OPTIONS)
    right = scaled(normal(far.astype("float64").reshape(FOUR), (0, 3)))
    check.expect(check.fits(y, right, 1e-3, 1e-3), "in float32 y loses its digits for numbers "
                 "around 1000: take the mean off x before you square")  # fmt: skip

    x, gamma, beta = drawn(check, 2, 1, 12)
    right = normal(x.reshape(2, 1, 3, 4), (0, 3), epsilon=0.5).reshape(x.shape) * gamma + beta
    y = check.forward(task.GroupNorm, x, gamma, beta, **OTHERS)
    sizes = "2 tokens, 1 image, 3 groups of 4 channels, epsilon 0.5"
    check.compare(f"y, for {sizes},", y, right)


def backward(task, check):
    x, gamma, beta = drawn(check, *SHAPE)
    rows = x.reshape(FOUR)

    def mean(array):
        return array.mean((0, 3), keepdims=True)

    def plain(x, gamma, beta):
        x = x.reshape(FOUR)
        x = x - x.mean((0, 3), keepdims=True)
        x = x / ((x * x).mean((0, 3), keepdims=True) + 0.1).sqrt()
        return x.reshape(SHAPE) * gamma + beta

    _, dy, (dx, dgamma, dbeta) = check.both_ways(task.GroupNorm, x, gamma, beta, **OPTIONS)
    x_hat, dx_hat = normal(rows, (0, 3)), (dy * gamma).reshape(FOUR)
    sigma = (mean((rows - mean(rows)) ** 2) + 0.1) ** 0.5
    right = check.gradients_of(plain, [x, gamma, beta], dy)
    half = (dx_hat - mean(dx_hat)) / sigma
    check.compare("dx", dx, right[0], {
        "dx lacks the parts through the mean and through sigma, which x moves too":
            (dx_hat / sigma).reshape(SHAPE),
        "dx lacks the part through sigma: x_hat mean(dx_hat x_hat)": half.reshape(SHAPE),
        "dx lacks the part through the mean: mean(dx_hat)":
            ((dx_hat - x_hat * mean(dx_hat * x_hat)) / sigma).reshape(SHAPE),
        "dx is not divided by sigma": (right[0].reshape(FOUR) * sigma).reshape(SHAPE),
        "dx begins with dy; x_hat's gradient is gamma dy":
            (lambda d: (d - mean(d) - x_hat * mean(d * x_hat)) / sigma)(dy.reshape(FOUR))
            .reshape(SHAPE),
    })  # fmt: skip
    for name, found, terms in ("dgamma", dgamma, dy * x_hat.reshape(SHAPE)), ("dbeta", dbeta, dy):
        check.compare(name, found, terms.sum((0, 1)), {
            f"{name} is not summed over tokens and images": terms,
            f"{name} is not summed over the images": terms.sum(0),
            f"{name} is not summed over the tokens": terms.sum(1),
            "dgamma is made with x; gamma multiplies x_hat": (dy * x).sum((0, 1)),
        })  # fmt: skip
    check.both_dtypes(task.GroupNorm, x, gamma, beta, **OPTIONS)
    check.both_dtypes(task.GroupNorm, *drawn(check, 2, 1, 12), **OTHERS)
