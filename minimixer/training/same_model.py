"""Is the model still what it was when its optimizer was made? Moved, grown, gathered anew.

>>> from minimixer import SGD, Linear
>>> layer = Linear(2, 3)
>>> optimizer = SGD(layer.parameters(), lr=0.1)
>>> _ = layer.to("float64")
>>> optimizer.step()                         # goes where the model went
>>> optimizer.buffer.dtype
dtype('float64')
"""

from operator import attrgetter
from typing import Any

from ..engine.arrays import Array, to_device, use_device_of
from ..nn.module import Module
from ..nn.parameters import Parameter

_buffer = attrgetter("buffer")  # at C's speed


class SameModel:
    """The part of Optimizer that keeps an eye on the model."""

    def _follow(self: Any) -> None:
        """Go where the model went (`to`), and notice if it took other parameters."""
        buffer = self.buffer
        if {*map(_buffer, self.parameters)} != {buffer}:
            raise ValueError(
                "the model's parameters were gathered anew after this optimizer was made (was a "
                "layer replaced?); make a new optimizer from model.parameters()"
            )
        use_device_of(buffer.values)
        if self._moves != buffer.moves:
            self._moves = buffer.moves
            self.control: Array = to_device(self.control, buffer.device)
            for name, array in self.state.items():
                self.state[name] = to_device(array, buffer.device).astype(buffer.dtype, copy=False)

    def _look_for_newcomers(self: Any) -> None:
        """ValueError if Parameters that came into the model later, or were frozen then, have a
        gradient and no optimizer. Those left out on purpose lie in the buffer."""
        if self._looked != Module.changes:  # an attribute of some module was set since
            self._looked, self._newcomers = Module.changes, self._find_newcomers()
        if self._newcomers:
            self._refuse_newcomers()

    def _find_newcomers(self: Any) -> list[tuple[str, Parameter]]:
        """Parameters that came into the model after its buffer was made, or were frozen then."""
        owner = self.buffer.owner
        model = None if owner is None else owner()
        found = model.named_parameters() if model is not None else ()
        frozen = {id(p) for p in self._frozen}
        return [(name, p) for name, p in found if p.buffer is not self.buffer or id(p) in frozen]

    def _refuse_newcomers(self: Any) -> None:
        """ValueError if one of them has a gradient, and no optimizer trains it."""
        news = [
            name for name, p in self._newcomers
            if p.has_grad and p.requires_grad and p.buffer and p.start not in p.buffer.optimized
        ]  # fmt: skip
        if news:
            raise ValueError(
                f"{', '.join(news)} came into the model, or out of being frozen, after this "
                "optimizer was made, which would never train them; make a new optimizer from "
                "model.parameters()"
            )
