"""Optimizers: how a gradient moves the weights.

Each update is for one part of a range of a model's flat buffer: the weights w and the running
averages are overwritten. t is the number of the step. (step and zero_grad are in optimizer.py.)

>>> from minimixer import SGD, Linear, Tensor
>>> layer, x = Linear(1, 1), Tensor([[1.0]])
>>> optimizer = SGD(layer.parameters(), lr=0.1)
>>> for step in range(100):
...     optimizer.zero_grad()
...     ((layer(x) - 3.0) ** 2).sum().backward()
...     optimizer.step()
>>> round(layer(x).item(), 3)
3.0

Now you can do Task 9. Next: `data.py`, random batches and shifts.
"""

from collections.abc import Sequence
from typing import Any

from ..engine.arrays import Array
from ..engine.checks import check_number
from ..nn.layer_norm import check_epsilon
from .optimizer import Optimizer as Optimizer


class SGD(Optimizer):
    """v <- momentum v + g;  w <- w - lr v, or with nesterov  w <- w - lr (g + momentum v).

    Momentum steps along v, a sum of past gradients in which old ones fade: it gains speed where
    they agree, and they cancel where they do not. Nesterov's looks a step ahead, to what v will be
    if the next gradient is the same. Here g is the gradient plus weight_decay w, as in PyTorch.
    Sutskever et al. 2013."""

    constants: tuple[str, ...] = ("momentum", "nesterov")

    def __init__(
        self, parameters: Sequence[Any], lr: float, momentum: float = 0.0, nesterov: bool = False,
        weight_decay: float = 0.0,
    ):  # fmt: skip
        self.moments: tuple[str, ...] = ("momentum_buffer",) if momentum else ()
        self.nesterov = nesterov  # first: `check` of momentum asks for it
        self.momentum = momentum
        super().__init__(parameters, lr, weight_decay)

    def check(self, name: str, value: Any) -> Any:
        if name == "nesterov":
            return bool(value)
        if value and not self.moments:
            raise ValueError(
                f"momentum {value!r:.20} comes too late: make a new SGD, which keeps v"
            )
        if self.nesterov:
            return check_number("momentum, with nesterov,", value, 0, 1, "()")
        return check_number("momentum", value, 0, 1)

    def update(self, w: Array, g: Array, state: list[Array], lr: Any, decay: float, t: Any) -> Any:
        if decay:
            g += decay * w
        if self.momentum:
            (v,) = state
            v *= self.momentum
            v += g
            g = g + self.momentum * v if self.nesterov else v
        w -= lr * g


class AdamW(Optimizer):
    """m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  with m' = m / (1 - b1^t) and v' likewise,

    w <- w - lr weight_decay w - lr m' / (sqrt v' + epsilon). A weight thus moves by about lr while
    its gradients agree, by less where they alternate; their size does not matter. m and v start at
    0, and the divisions by 1 - b^t make up for that. Kingma and Ba 2015; the decay, apart from the
    gradient, Loshchilov and Hutter 2019.

    So rounding noise is enlarged: token mixing's b2 (block.py), with gradients of 1e-8 that should
    be 0, goes as far as 0.01 in 300 steps of lr 0.001 on MNIST. The scores hardly notice (2e-6)."""

    moments: tuple[str, ...] = ("exp_avg", "exp_avg_sq")  # m and v, as PyTorch names them
    constants: tuple[str, ...] = ("betas", "eps")

    def __init__(
        self, parameters: Sequence[Any], lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01,
    ):  # fmt: skip
        self.betas = betas
        self.eps = eps
        super().__init__(parameters, lr, weight_decay)

    def check(self, name: str, value: Any) -> Any:
        if name == "eps":  # where all gradients were 0 so far, 0 is divided by it
            return check_epsilon(value, "eps")
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError(f"betas must be two numbers, got {value!r:.60}")
        return tuple([check_number(f"betas[{i}]", beta, 0, 1) for i, beta in enumerate(value)])

    def update(self, w: Array, g: Array, state: list[Array], lr: Any, decay: float, t: Any) -> Any:
        (b1, b2), (m, v) = self.betas, state
        m += (1 - b1) * (g - m)
        v += (1 - b2) * (g * g - v)
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        w -= lr * (decay * w + m_hat / (v_hat**0.5 + self.eps))


class Adam(AdamW):
    """AdamW without weight decay unless asked for; decay is apart from the gradient here too."""

    def __init__(
        self, parameters: Sequence[Any], lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
    ):  # fmt: skip
        super().__init__(parameters, lr, betas, eps, weight_decay)
