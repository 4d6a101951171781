"""What an optimizer is told: groups of Parameters, learning rates, a state to go on from.

>>> from minimixer import SGD, Linear
>>> first, last = Linear(2, 2), Linear(2, 2)
>>> SGD([{"params": first.parameters(), "lr": 0.01}], lr=0.1)
SGD(momentum=0.0, nesterov=False, step 0
  lr=0.01, weight_decay=0.0: 2 Parameters, 6 weights
)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine.arrays import device_of, to_device, to_numpy, use_device_of
from ..engine.checks import all_finite, check_number, whole
from ..engine.devices import check_not_recorded
from ..engine.habits import missing
from ..nn.module import Module
from ..nn.parameters import Parameter

LR_FACTOR, STEP, CLIP = range(3)  # the places in an optimizer's `control`; FINITE is the last
_GROUP_KEYS = {"params", "lr", "weight_decay"}


def check_rate(name: str, value: Any) -> float:
    """ValueError unless it is a number from 0 to 1e38."""
    return check_number(name, value, 0, 1e38, "[]")  # beyond it is infinite in float32


def read_groups(
    parameters: Sequence[Any] | Module, lr: float, weight_decay: float
) -> tuple[list[Parameter], list[Parameter], list[tuple[float, float]]]:
    """The Parameters to be trained, those that are frozen, and (lr, decay) for each of the first.
    Errors as of Optimizer."""
    groups: list[Any] = list(
        parameters.parameters() if isinstance(parameters, Module) else parameters
    )
    if not any(isinstance(group, dict) for group in groups):
        groups = [{"params": groups}]
    trained: list[Parameter] = []
    frozen: list[Parameter] = []
    settings: list[tuple[float, float]] = []
    for group in groups:
        if not isinstance(group, dict) or not {"params"} <= set(group) <= _GROUP_KEYS:
            raise ValueError(
                f"a group of Parameters is a dict of {', '.join(sorted(_GROUP_KEYS))}; got "
                + (f"{list(group)}" if isinstance(group, dict) else f"a {type(group).__name__}")
            )
        group_lr = check_rate("lr", group.get("lr", lr))
        decay = check_rate("weight_decay", group.get("weight_decay", weight_decay))
        for parameter in group["params"]:
            if not isinstance(parameter, Parameter):
                raise TypeError(
                    f"the optimizer takes Parameters, such as model.parameters(), got a "
                    f"{type(parameter).__name__}"
                )
            if parameter.requires_grad:
                trained.append(parameter)
                settings.append((group_lr, decay if parameter.ndim > 1 else 0.0))
            else:
                frozen.append(parameter)
    if not trained:
        raise ValueError("the optimizer was given no parameters to train")
    if len({id(p) for p in trained}) < len(trained):
        raise ValueError("a parameter was given to the optimizer twice")
    if len({id(p.buffer) for p in trained}) > 1:
        raise ValueError(
            "these parameters belong to different models; make one Module that holds them all "
            "and use its parameters(), or one optimizer for each model"
        )
    return trained, frozen, settings


class Settings:
    """The half of Optimizer that an update needs nothing of."""

    @property
    def lr(self: Any) -> float:
        """The (first group's) learning rate; assigning sets it for all groups."""
        return self._settings[0][0]

    @lr.setter
    def lr(self: Any, lr: float) -> None:
        lr = check_rate("lr", lr)
        self._change([(lr, decay) for _, decay in self._settings])

    @property
    def weight_decay(self: Any) -> float:
        """The (largest group's) weight decay; assigning sets it for the matrices of all groups."""
        return max(decay for _, decay in self._settings)

    @weight_decay.setter
    def weight_decay(self: Any, decay: float) -> None:
        decay = check_rate("weight_decay", decay)
        pairs = zip(self.parameters, self._settings, strict=True)
        self._change([(lr, decay if p.ndim > 1 else 0.0) for p, (lr, _) in pairs])

    def _change(self: Any, settings: list[tuple[float, float]]) -> None:
        self._settings = settings
        self.changes += 1

    @property
    def lr_factor(self: Any) -> float:
        """What a schedule multiplies every group's learning rate with."""
        return float(self.control[LR_FACTOR])

    @lr_factor.setter
    def lr_factor(self: Any, factor: float) -> None:
        factor = check_rate("lr_factor", factor)
        use_device_of(self.control)
        if device_of(self.control) != "cpu":
            check_not_recorded("setting lr_factor")
        self.control[LR_FACTOR] = factor

    def state_dict(self: Any) -> dict[str, Any]:
        """{"step": int, and for each moment a list of NumPy arrays, one for each parameter}."""
        moments = {
            name: [to_numpy(p.window(array)).copy() for p in self.parameters]
            for name, array in self.state.items()
        }
        return {"step": int(self.control[STEP]), **moments}

    def load_state_dict(self: Any, state: dict[str, Any]) -> None:
        """Go on where another optimizer of this kind, for the same parameters, stopped."""
        self._follow()
        expected = {"step", *self.moments}
        if not isinstance(state, dict) or set(state) != expected:
            raise ValueError(
                f"optimizer state: expected {sorted(expected)}, got "
                + (f"{sorted(state)}" if isinstance(state, dict) else f"{state!r:.60}")
            )
        step = whole(state["step"], "optimizer state: step")
        if step < 0:
            raise ValueError(f"optimizer state: step is {step}")
        for name in self.moments:
            arrays = state[name] if isinstance(state[name], (list, tuple)) else ()
            if [np.shape(array) for array in arrays] != [p.shape for p in self.parameters]:
                raise ValueError(f"optimizer state: {name!r} does not fit the parameters")
            for array in map(np.asarray, arrays):
                if array.dtype.kind not in "fiu" or not all_finite(array, self.buffer.dtype):
                    raise ValueError(f"optimizer state: {name!r} holds NaN, infinity or no numbers")
                if name.endswith("_sq") and (array < 0).any():
                    raise ValueError(f"optimizer state: {name!r} holds squares below 0")
        for name in self.moments:
            for parameter, array in zip(self.parameters, state[name], strict=True):
                array = np.asarray(array, dtype=self.buffer.dtype)
                parameter.window(self.state[name])[...] = to_device(array, self.buffer.device)
        self.control[STEP] = step

    def __repr__(self: Any) -> str:
        constants = [f"{name}={getattr(self, name)}" for name in self.constants]
        parts: dict[tuple[float, float], list[int]] = {}
        for parameter, setting in zip(self.parameters, self._settings, strict=True):
            parts.setdefault(setting, []).append(parameter.size)
        first = ", ".join([*constants, f"step {int(self.control[STEP])}"])
        lines = [f"{type(self).__name__}({first}"]
        for (lr, decay), sizes in parts.items():
            counts = f"{len(sizes)} Parameters, {sum(sizes):,} weights"
            lines.append(f"  lr={lr}, weight_decay={decay}: {counts}")
        return "\n".join([*lines, ")"])

    def __getattr__(self: Any, name: str) -> Any:  # what is not there
        raise missing("Optimizer", name, type(self).__name__)

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        raise TypeError(
            "copy the model, make a new optimizer from its parameters, and give that this one's "
            "state_dict()"
        )
