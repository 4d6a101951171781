"""Optimizers: how a gradient moves the weights.

An optimizer holds a model's flat buffer and a list of ranges of it: (start, stop, lr, decay).
Parameter groups, weight decay on matrices only and frozen parameters are nothing more than such
ranges, and an update is a handful of array operations on each. The numbers that change from step
to step (learning-rate factor, step count, clipping factor, whether the gradients are finite) lie
in one small array, `control`, on the model's device: a GPU reads them there and never waits for
Python.

>>> import numpy as np
>>> from minimixer.nn import Linear
>>> layer = Linear(1, 1)
>>> optimizer = SGD(layer.parameters(), lr=0.1)
>>> for step in range(100):
...     optimizer.zero_grad()
...     ((layer(np.ones((1, 1), "float32")) - 3.0) ** 2).sum().backward()
...     optimizer.step()
>>> round(float(layer(np.ones((1, 1), "float32")).data[0, 0]), 3)
3.0

Next: `names.py`, the files that hold what to train on.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .backend import (
    Array,
    address,
    blocks,
    check_not_recorded,
    device_of,
    namespace,
    to_device,
    to_numpy,
    twin,
    use_device_of,
)
from .checks import check_number
from .loss_scale import adjust_scale
from .norms import gradient_norm
from .parameters import Parameter, ParameterBuffer

LR_FACTOR, STEP, CLIP, FINITE = range(4)  # the places in `control`
Range = tuple[int, int, float, float]  # start, stop, lr, decay
_GROUP_KEYS = {"params", "lr", "weight_decay"}


class Optimizer:
    """What all optimizers share. Subclasses define `moments` and `update`.

    parameters    Parameters of one model, or groups: dicts with "params" and, if they differ from
                  the defaults, "lr" and "weight_decay". Those with requires_grad=False stay as is.
    lr            learning rate; `lr_factor`, set by a schedule, multiplies every group's
    weight_decay  pulls weights towards 0; only matrices, not biases and LayerNorms

    ValueError: no parameters, parameters of different models or twice, lr or weight_decay < 0.
    """

    moments: tuple[str, ...] = ()  # the running averages' names, one array each
    constants: tuple[str, ...] = ()  # other attributes that an update depends on

    def __init__(self, parameters: Sequence[Any], lr: float, weight_decay: float):
        groups: list[Any] = list(parameters)
        if not any(isinstance(group, dict) for group in groups):
            groups = [{"params": groups}]
        self.parameters: list[Parameter] = []
        self._settings: list[tuple[float, float]] = []
        self._changes = 0  # of them
        for group in groups:
            if not isinstance(group, dict) or not {"params"} <= set(group) <= _GROUP_KEYS:
                raise ValueError(
                    f"a group of Parameters is a dict of {', '.join(sorted(_GROUP_KEYS))}; got "
                    + (f"{list(group)}" if isinstance(group, dict) else f"a {type(group).__name__}")
                )
            group_lr = check_number("lr", group.get("lr", lr))
            decay = check_number("weight_decay", group.get("weight_decay", weight_decay))
            for parameter in group["params"]:
                if not isinstance(parameter, Parameter):
                    raise TypeError(
                        f"the optimizer takes Parameters, such as model.parameters(), got a "
                        f"{type(parameter).__name__}"
                    )
                if parameter.requires_grad:
                    self.parameters.append(parameter)
                    self._settings.append((group_lr, decay if parameter.ndim > 1 else 0.0))
        if not self.parameters:
            raise ValueError("the optimizer was given no parameters to train")
        if len({id(p) for p in self.parameters}) < len(self.parameters):
            raise ValueError("a parameter was given to the optimizer twice")
        if len({id(p.buffer) for p in self.parameters}) > 1:
            raise ValueError(
                "these parameters belong to different models; make one Module that holds them all "
                "and use its parameters(), or one optimizer for each model"
            )
        buffer = self.parameters[0].buffer
        assert buffer is not None
        self.buffer: ParameterBuffer = buffer
        self.control: Array = np.array([1.0, 0.0, 1.0, 1.0])
        self.clipped = False  # is `control` to clip the next step?
        self.state = {name: np.zeros(buffer.size, dtype=buffer.dtype) for name in self.moments}
        self._ranges: tuple[list[bool], list[Range]] | None = None
        self._follow()

    # ---- what a training loop calls -------------------------------------------------------------

    def step(self) -> None:
        """Move every parameter that has a gradient, and clear the clipping factor."""
        self._follow()
        ranges = self._active_ranges()
        if self.scaled:
            norm = self._gradient_norm()
            self.control[FINITE] = namespace(norm).isfinite(norm)
        fast = twin(type(self), self.buffer.values)  # which looks at FINITE itself, on the device
        if fast is None or not fast(self, ranges):
            self._update_ranges(ranges)
        if self.scaled:
            adjust_scale(self.buffer.loss_scale, self.control[FINITE : FINITE + 1])
        self._count_step()
        for parameter in self.parameters:
            parameter.version += 1

    def zero_grad(self) -> None:
        """Forget the gradients, and how they were to be clipped."""
        if self.clipped:
            use_device_of(self.control)
            self.control[CLIP], self.clipped = 1, False
        for parameter in self.parameters:
            parameter.grad = None

    def clip_grad_norm(self, max_norm: float) -> Array:
        """Let the coming step see gradients of norm at most `max_norm`, all of them scaled alike.

        Returns their norm before that, a 0-d array on the device (Pascanu et al. 2013).
        """
        max_norm = check_number("max_norm", max_norm, ends="(]")
        self._follow()
        norm = self._gradient_norm()
        self.control[CLIP] = namespace(norm).minimum(1, max_norm / (norm + 1e-6))
        self.clipped = True
        return norm

    @property
    def signature(self) -> tuple[Any, ...]:
        """What a recorded step (graph.py) depends on, besides what lies on the device."""
        places = [address(array) for array in (self.control, *self.state.values())]
        settings = [getattr(self, name) for name in self.constants]
        return (*places, self._changes, self.clipped, *settings)

    @property
    def scaled(self) -> bool:
        """Do gradients come from float16, and may overflow?"""
        return self.buffer.scaled

    @property
    def lr(self) -> float:
        """The (first group's) learning rate; assigning sets it for all groups."""
        return self._settings[0][0]

    @lr.setter
    def lr(self, lr: float) -> None:
        lr = check_number("lr", lr)
        self._settings = [(lr, decay) for _, decay in self._settings]
        self._ranges = None
        self._changes += 1

    @property
    def lr_factor(self) -> float:
        """What a schedule multiplies every group's learning rate with."""
        return float(self.control[LR_FACTOR])

    @lr_factor.setter
    def lr_factor(self, factor: float) -> None:
        factor = check_number("lr_factor", factor)
        use_device_of(self.control)
        if device_of(self.control) != "cpu":
            check_not_recorded("setting lr_factor")
        self.control[LR_FACTOR] = factor

    def state_dict(self) -> dict[str, Any]:
        """{"step": int, and for each moment a list of NumPy arrays, one for each parameter}."""
        moments = {
            name: [to_numpy(p.window(array)).copy() for p in self.parameters]
            for name, array in self.state.items()
        }
        return {"step": int(self.control[STEP]), **moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another optimizer of this kind, for the same parameters, stopped."""
        self._follow()
        expected = {"step", *self.moments}
        if set(state) != expected:
            raise ValueError(f"optimizer state: expected {sorted(expected)}, got {sorted(state)}")
        step = operator.index(state["step"])
        if step < 0:
            raise ValueError(f"optimizer state: step is {step}")
        with np.errstate(over="ignore"):  # infinity is refused below
            arrays = {
                name: [np.asarray(array, dtype=self.buffer.dtype) for array in state[name]]
                for name in self.moments
            }
        for name in self.moments:
            if [array.shape for array in arrays[name]] != [p.shape for p in self.parameters]:
                raise ValueError(f"optimizer state: {name!r} does not fit the parameters")
            if not all(np.isfinite(array).all() for array in arrays[name]):
                raise ValueError(f"optimizer state: {name!r} holds NaN or infinity")
        for name in self.moments:
            for parameter, array in zip(self.parameters, arrays[name], strict=True):
                parameter.window(self.state[name])[...] = to_device(array, self.buffer.device)
        self.control[STEP] = step

    def __deepcopy__(self, memo: dict) -> "Optimizer":
        raise TypeError(
            "copy the model, make a new optimizer from its parameters, and give that this one's "
            "state_dict()"
        )

    # ---- how it is done -------------------------------------------------------------------------

    def _count_step(self) -> None:
        """One step more, unless the gradients were not finite; the next is not clipped so far."""
        control, counters = self.control, self.buffer.random.counters
        fast = twin("count_step", control)
        if fast is None or not fast(control, counters):
            control[STEP : STEP + 1] += control[FINITE : FINITE + 1]
            control[CLIP] = control[FINITE] = 1
            counters[:1] += np.uint64(1)
        self.clipped = False

    def _update_ranges(self, ranges: list[Range]) -> None:
        buffer, gradients = self.buffer, self.buffer.make_gradients()
        on_cpu = namespace(buffer.values) is np
        if self.scaled and on_cpu and not self.control[FINITE]:
            return
        scalars = self._scalars()
        for start, stop, lr, decay in ranges:
            for part in blocks(buffer.values, start, stop):
                arrays = [array[part] for array in (buffer.values, *self.state.values())]
                before = [a.copy() for a in arrays] if self.scaled and not on_cpu else []
                self.update(arrays[0], gradients[part], arrays[1:], lr, decay, scalars)
                for array, old in zip(arrays, before, strict=False):  # an overflow: all as it was
                    namespace(array).copyto(array, old, where=self.control[FINITE] == 0)
            buffer.refresh(start, stop)

    def _gradient_norm(self) -> Array:
        """The norm of all gradients, 0-d, in the parameters' dtype."""
        gradients = self.buffer.make_gradients()
        parts = [gradients[start:stop] for start, stop, _, _ in self._active_ranges()]
        return gradient_norm(parts or [gradients[:1] * 0])

    def update(
        self, w: Array, g: Array, state: list[Array], lr: float, decay: float, scalars: Array
    ) -> None:
        """Change w and state in place, for one block of a range."""
        raise TypeError(f"{type(self).__name__} has no update")

    def _scalars(self) -> Array:
        """`control` in the parameters' dtype."""
        return self.control.astype(self.buffer.dtype)

    def _follow(self) -> None:
        """Go where the model went (`to`), and notice if it took other parameters."""
        buffer = self.buffer
        if any(p.buffer is not buffer for p in self.parameters):
            raise ValueError(
                "the model's parameters were gathered anew after this optimizer was made (was a "
                "layer replaced?); make a new optimizer from model.parameters()"
            )
        use_device_of(buffer.values)
        if device_of(self.control) != buffer.device:
            self.control = to_device(self.control, buffer.device)
        for name, array in self.state.items():
            if array.dtype != buffer.dtype or device_of(array) != buffer.device:
                self.state[name] = to_device(array, buffer.device).astype(buffer.dtype, copy=False)

    def _active_ranges(self) -> list[Range]:
        """Stretches of the buffer with gradients and equal settings, as long as possible."""
        has_grad = [p.has_grad for p in self.parameters]
        if self._ranges is None or self._ranges[0] != has_grad:
            pieces = sorted(
                (p.start, p.stop, *setting)
                for p, setting, has in zip(self.parameters, self._settings, has_grad, strict=True)
                if has
            )
            ranges: list[Range] = []
            for piece in pieces:
                if ranges and ranges[-1][1:] == (piece[0], *piece[2:]):
                    ranges[-1] = (ranges[-1][0], *piece[1:])
                else:
                    ranges.append(piece)
            self._ranges = has_grad, ranges
        return self._ranges[1]


class SGD(Optimizer):
    """v <- momentum v + g;  w <- w - lr v, or with nesterov  w <- w - lr (g + momentum v).

    v, a decaying sum of past gradients, keeps going where they agree and cancels where they do not.
    g is the gradient plus weight_decay w, as in PyTorch. Sutskever et al. 2013.
    """

    constants = ("momentum", "nesterov")

    def __init__(
        self, parameters: Sequence[Any], lr: float, momentum: float = 0.0, nesterov: bool = False,
        weight_decay: float = 0.0,
    ):  # fmt: skip
        self.momentum = check_number(
            "momentum, with nesterov," if nesterov else "momentum",
            momentum, 0, 1, "()" if nesterov else "[)",
        )  # fmt: skip
        self.nesterov = bool(nesterov)
        self.moments = ("momentum_buffer",) if momentum else ()
        super().__init__(parameters, lr, weight_decay)

    def update(self, w, g, state, lr, decay, scalars):
        g = g * scalars[CLIP : CLIP + 1]
        if decay:
            g += decay * w
        if self.momentum:
            (v,) = state
            v *= self.momentum
            v += g
            g = g + self.momentum * v if self.nesterov else v
        w -= g * (lr * scalars[LR_FACTOR : LR_FACTOR + 1])


class AdamW(Optimizer):
    """m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  with m' = m / (1 - b1^t) and v' likewise,

    w <- w - lr weight_decay w - lr m' / (sqrt v' + epsilon). Every weight thus moves by about lr,
    whatever the size of its gradient; m and v start at 0, and the divisions by 1 - b^t make up for
    that. t counts the optimizer's steps. Kingma and Ba 2015; the decay, apart from the gradient,
    Loshchilov and Hutter 2019.
    """

    moments = ("exp_avg", "exp_avg_sq")
    constants = ("betas", "eps")

    def __init__(
        self, parameters: Sequence[Any], lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01,
    ):  # fmt: skip
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas!r:.60}")
        b1, b2 = (check_number(f"betas[{i}]", beta, 0, 1) for i, beta in enumerate(betas))
        self.betas, self.eps = (b1, b2), check_number("eps", eps, ends="()")
        super().__init__(parameters, lr, weight_decay)

    def _scalars(self):
        """(4,): learning-rate factor, clip, and the corrections 1 / (1 - b1^t) for m (times the
        factor) and 1 / sqrt(1 - b2^t) for sqrt v."""
        factor, step, clip = (self.control[i : i + 1] for i in (LR_FACTOR, STEP, CLIP))
        xp = namespace(self.control)
        t = step + 1  # `step` are those done
        for_m = factor / (1 - self.betas[0] ** t)
        for_v = 1 / xp.sqrt(1 - self.betas[1] ** t)
        return xp.concatenate([factor, clip, for_m, for_v]).astype(self.buffer.dtype)

    def update(self, w, g, state, lr, decay, scalars):
        xp = namespace(w)
        m, v = state
        factor, clip, for_m, for_v = (scalars[i : i + 1] for i in range(4))
        g = g * clip
        square = g * g
        g -= m
        g *= 1 - self.betas[0]
        m += g
        square -= v
        square *= 1 - self.betas[1]
        v += square
        root = xp.sqrt(v, out=square)
        root *= for_v
        root += self.eps
        xp.divide(m, root, out=g)
        g *= lr * for_m
        if decay:
            w *= 1 - (lr * decay) * factor
        w -= g


class Adam(AdamW):
    """AdamW without weight decay unless asked for; that is decoupled here too."""

    def __init__(
        self, parameters: Sequence[Any], lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
    ):  # fmt: skip
        super().__init__(parameters, lr, betas, eps, weight_decay)
