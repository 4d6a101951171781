"""Task 9: an optimizer, Adan. About 25 minutes.

Adam follows an average of past gradients g. Adan (Xie et al. 2022) also averages their change from
step to step, d, and looks ahead with it, as Nesterov's momentum does. For each weight w, at step t
(1, 2, ...), betas b1, b2, b3 and d = g - g', g' that of the step before (d = 0 at the first):

    m <- b1 m + (1 - b1) g                   m' = m / (1 - b1^t)
    v <- b2 v + (1 - b2) d                   v' = v / (1 - b2^t)
    n <- b3 n + (1 - b3) (g + b2 d)^2        n' = n / (1 - b3^t)
    w <- (w - lr (m' + b2 v') / (sqrt n' + eps)) / (1 + lr decay)

Write `update`. m, v, n and the gradient before are in `state`, all 0 at first. Everything is
changed in place: `w -= ...` and `m[...] = ...` change the array, `m = ...` only gives the name m
to another one. Take lr and decay as update gets them: a schedule changes lr from step to step, and
biases have a decay of 0. g is yours. (The paper writes 1 - b for b. On a GPU t is an array of one
number, so write no `if` of it; (t > 1) can be multiplied by.)

Read: minimixer/training/optim.py (AdamW), minimixer/training/optimizer.py (update).
"""

from minimixer.optim import Optimizer


class Adan(Optimizer):
    moments = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous")

    def __init__(self, parameters, lr=1e-3, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.0):
        self.betas, self.eps = betas, eps
        super().__init__(parameters, lr, weight_decay)

    def update(self, w, g, state, lr, decay, t):
        (b1, b2, b3), (m, v, n, previous) = self.betas, state
        # solution: write update, which changes w and state in place
        d = (g - previous) * (t > 1)
        previous[...] = g
        m += (1 - b1) * (g - m)
        v += (1 - b2) * (d - v)
        n += (1 - b3) * ((g + b2 * d) ** 2 - n)
        step = m / (1 - b1**t) + b2 * v / (1 - b2**t)
        w -= lr * step / ((n / (1 - b3**t)) ** 0.5 + self.eps)
        w /= 1 + lr * decay
        # end of solution


# ---- what follows stays in minimixer -------------------------------------------------------------

HINTS = (
    "AdamW.update has the first line of the formulas already, and nearly the third. Which of the "
    "four arrays must get g, and when, so that the next step finds it there?",
    "m <- b1 m + (1 - b1) g is m += (1 - b1) * (g - m), in place. d comes first, from `previous`; "
    "after that previous[...] = g. At step 1 `previous` is 0 and d would be g: times (t > 1) it is "
    "0.",
    "d = (g - previous) * (t > 1); previous[...] = g; the three averages with g, d and "
    "(g + b2 * d) ** 2; then w -= lr * (m' + b2 * v') / (n' ** 0.5 + self.eps), and "
    "w /= 1 + lr * decay.",
)


BETAS, EPS, DECAY = (0.9, 0.8, 0.95), 0.05, 0.5


def path(w, gradients, rates, decay, mistake=None):
    """After each step w, and what `state` must hold, in float64."""
    b1, b2, b3 = (0.98, 0.92, 0.99) if mistake == "betas" else BETAS
    m = v = n = 0.0 * w
    before = gradients[0]
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        lr = rates[0] if mistake == "lr" else lr
        m, v, n = (
            0 * a if mistake == letter else a for a, letter in ((m, "m"), (v, "v"), (n, "n"))
        )
        d = g if mistake == "first" and t == 1 else g - before
        d = g if mistake == "kept" and t > 1 else d
        before = g
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * d
        n = b3 * n + (1 - b3) * (g + (0 if mistake == "square" else b2 * d)) ** 2
        up, ahead, size = m / (1 - b1**t), v / (1 - b2**t), n / (1 - b3**t)
        if mistake == "bias":
            up, ahead, size = m, v, n
        if mistake == "ahead":
            ahead = ahead / b2
        root = (size + EPS) ** 0.5 if mistake == "inside" else size**0.5
        step = lr * (up + b2 * ahead) / (root + (0 if mistake in ("eps", "inside") else EPS))
        if mistake == "decay":
            w = (1 - lr * decay) * w - step
        elif mistake == "factor":
            w = (w - step) * (1 - lr * decay)
        elif mistake == "early":
            w = w / (1 + lr * decay) - step
        elif mistake in ("none", "all"):
            w = (w - step) / (1 + lr * DECAY * (mistake == "all"))
        else:
            w = (w - step) / (1 + lr * decay)
        yield w, (m, v, n, g)


MISTAKES = {
    "first": "at the first step there is no gradient before, and d is 0: multiply by (t > 1)",
    "kept": "the gradient is not kept for the next step: previous[...] = g, after d was made",
    "square": "n averages the square of g + b2 d, not that of g",
    "bias": "the averages start at 0; divide them by 1 - b^t",
    "ahead": "v' is added without its factor b2",
    "eps": "eps is missing, or is not self.eps: it is added to the root of n'",
    "inside": "eps stands inside the root; it is added to it",
    "lr": "the rate is not the lr that update is given, which a schedule changes (self.lr stays)",
    "betas": "the betas are not those of self.betas",
    **{x: f"{x} is not kept in state: {x} += ... changes the array, {x} = ... does not"
       for x in "mvn"},
    "decay": "weight decay divides by 1 + lr decay at the end; AdamW's is another",
    "factor": "weight decay divides by 1 + lr decay, and does not multiply by 1 - lr decay",
    "none": "the weight decay is missing",
    "all": "the decay is not the one that update is given: for biases that is 0",
    "early": "the division by 1 + lr decay comes after the step, which it makes smaller too",
}  # fmt: skip


def test(task, check) -> None:
    layer = check.Linear(3, 2)
    optimizer = task.Adan(layer.parameters(), 0.1, BETAS, EPS, DECAY)
    factors = 1.0, 1.0, 0.5, 0.2  # a schedule
    draws = [(check.draw(3, 2, seed=i), check.draw(2, seed=i)) for i in range(len(factors))]
    start = {p: p.data.astype("float64") for p in (layer.weight, layer.bias)}
    walks = {}
    for number, (p, w) in enumerate(start.items()):
        gradients, decay = [pair[number] for pair in draws], DECAY if p is layer.weight else 0.0
        rates = [0.1 * factor for factor in factors]
        walks[p] = [list(path(w, gradients, rates, decay, m)) for m in (None, *MISTAKES)]
    for k, (for_weight, for_bias) in enumerate(draws):
        optimizer.zero_grad()
        loss = (layer.weight * for_weight.astype("float32")).sum()
        (loss + (layer.bias * for_bias.astype("float32")).sum()).backward()
        optimizer.lr_factor = factors[k]
        optimizer.step()
        for name, p in ("bias", layer.bias), ("matrix", layer.weight):
            (right, state), *wrong = [walk[k] for walk in walks[p]]
            check.expect(k or (p.data != start[p]).any(), f"the {name} has not moved: change w in "
                         "place, with w -= ...")  # fmt: skip
            mistakes = {said: w for said, (w, _) in zip(MISTAKES.values(), wrong, strict=True)}
            # Where no sentence fits, the first array that is wrong, in the formulas' order.
            if not any(check.fits(p.data, w, 1e-4, 1e-5) for w in mistakes.values()):
                names = "m", "v", "n", "previous"
                for x, a, should in zip(names, optimizer.state.values(), state, strict=True):
                    found = a[p.start : p.start + p.size].reshape(p.shape)
                    check.compare(f"{x} in state, for the {name} after step {k + 1},", found,
                                  should, rtol=1e-4, atol=1e-5)  # fmt: skip
            check.compare(f"after step {k + 1} the {name}", p.data, right, mistakes, 1e-4, 1e-5)
