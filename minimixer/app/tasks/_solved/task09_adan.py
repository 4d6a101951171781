"""Task 9: an optimizer, Adan. About 25 minutes.

Adam follows an average of past gradients g. Adan (Xie et al. 2022) also averages their change from
step to step, d, and looks ahead with it, as Nesterov's momentum does. For each weight w, at step t
(1, 2, ...), with betas b1, b2, b3 and with d = g - (g of the step before), 0 at the first step:

    m <- b1 m + (1 - b1) g                   m' = m / (1 - b1^t)
    v <- b2 v + (1 - b2) d                   v' = v / (1 - b2^t)
    n <- b3 n + (1 - b3) (g + b2 d)^2        n' = n / (1 - b3^t)
    w <- (w - lr (m' + b2 v') / (sqrt n' + eps)) / (1 + lr decay)

Write `update`. m, v, n and the gradient before are in `state`, all 0 at first. Everything is
changed in place: w -= ... and m[...] = ... change the array, m = ... only gives the name m to
another one. (The paper writes 1 - b for b. On a GPU t is an array of one number, so write no `if`
of it; (t > 1) can be multiplied by.)

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


def path(w, gradients, lr, decay, mistake=None):
    """w after each step, in float64."""
    b1, b2, b3 = 0.98, 0.92, 0.99
    m = v = n = 0.0 * w
    before = gradients[0]
    for t, g in enumerate(gradients, 1):
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
        step = lr * (up + b2 * ahead) / (size**0.5 + 1e-8)
        if mistake == "decay":
            w = (1 - lr * decay) * w - step
        elif mistake == "factor":
            w = (w - step) * (1 - lr * decay)
        else:
            w = (w - step) / (1 + lr * decay)
        yield w


def test(task, check) -> None:
    layer = check.Linear(3, 2)
    optimizer = task.Adan(layer.parameters(), lr=0.1, weight_decay=0.5)
    steps = 4
    draws = [(check.draw(3, 2, seed=i), check.draw(2, seed=i)) for i in range(steps)]
    mistakes = {
        "first": "at the first step there is no gradient before, and d is 0: multiply by (t > 1)",
        "kept": "the gradient is not kept for the next step: previous[...] = g, after d was made",
        "square": "n averages the square of g + b2 d, not that of g",
        "bias": "the averages start at 0; divide them by 1 - b^t",
        "ahead": "v' is added without its factor b2",
        "decay": "weight decay divides by 1 + lr decay at the end; AdamW's is another",
        "factor": "weight decay divides by 1 + lr decay, and does not multiply by 1 - lr decay",
    }
    start = {p: p.data.astype("float64") for p in (layer.weight, layer.bias)}
    walks = {}
    for number, (p, w) in enumerate(start.items()):
        gradients, decay = [pair[number] for pair in draws], 0.5 if p is layer.weight else 0.0
        walks[p] = [list(path(w, gradients, 0.1, decay, m)) for m in (None, *mistakes)]
    for k, (for_weight, for_bias) in enumerate(draws):
        optimizer.zero_grad()
        loss = (layer.weight * for_weight.astype("float32")).sum()
        (loss + (layer.bias * for_bias.astype("float32")).sum()).backward()
        optimizer.step()
        for name, p in ("bias", layer.bias), ("matrix", layer.weight):
            right, *wrong = [walk[k] for walk in walks[p]]
            check.expect(k or (p.data != start[p]).any(), f"the {name} has not moved: change w in "
                         "place, with w -= ...")  # fmt: skip
            check.compare(f"after step {k + 1} the {name}", p.data, right,
                          dict(zip(mistakes.values(), wrong, strict=True)), 1e-4, 1e-5)  # fmt: skip
