"""What a forward pass computes on its way: a model that tells what its parts return.

Nothing is computed a second time by other code. A copy of the model, with the same Parameters, runs
as the model does, by its plain modules; where they have methods of interest, the copy has ones that
call them and tell what they returned. (What a forward changes in its own module, it changes in the
copy.)

>>> import numpy as np
>>> from minimixer import Mixer
>>> model = Mixer(image_size=28, patch_size=7, in_channels=1, num_classes=10,
...               num_blocks=1, hidden_dim=32, tokens_mlp_dim=8, channels_mlp_dim=64)
>>> for name, values in model.inspect(np.zeros((5, 28, 28, 1), dtype="uint8")).items():
...     print(f"{name:30} {values.shape}")
patches                        (5, 16, 49)
tokens                         (5, 16, 32)
blocks.0.norm1                 (5, 16, 32)
blocks.0.token_mixing.hidden   (5, 8, 32)
blocks.0.token_mixing          (5, 16, 32)
blocks.0.norm2                 (5, 16, 32)
blocks.0.channel_mixing.hidden (5, 16, 64)
blocks.0.channel_mixing        (5, 16, 32)
blocks.0                       (5, 16, 32)
norm                           (5, 16, 32)
pooled                         (5, 32)
logits                         (5, 10)
"""

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

from ..engine.tensor import Tensor
from ..nn.module import Module
from ..nn.recompute import recompute
from .block import MixerBlock, MixerMLP

Tell = Callable[[str, Tensor], None]  # the name of a part, and what it returned


class Listener:
    """Runs copies of a Mixer's modules. `inside`: are parts of its blocks heard too?"""

    def __init__(self, tell: Tell, inside: bool):
        self.tell, self.inside = tell, inside
        self.copies: list[Any] = []

    def run(self, model: Any, images: Any) -> Tensor:
        """model(images), with the tokens first in all that is told."""
        try:
            return self.mixer(model)(images)
        finally:
            for each in self.copies:  # which hold each other, and so what was told
                vars(each).clear()

    def mixer(self, model: Any) -> Any:
        again = model.checkpoint_blocks and not self.inside
        found = self.listen(model, patches="patches", pooled="pooled")
        vars(found).update(
            checkpoint_blocks=False,
            stem=self.listen(model.stem, forward="tokens"),
            norm=self.listen(model.norm, forward="norm"),
            blocks=[self.block(block, i, again) for i, block in enumerate(model.blocks)],
        )  # fmt: skip
        return found

    def block(self, block: Any, number: int, again: bool) -> Any:
        """A block of one's own is one part. In the paper's, what drops let through is added.
        `again`: it keeps nothing, and is computed again in backward."""
        name = f"blocks.{number}"
        if again:
            return self.told(lambda x: recompute(block, x), name)
        found = self.listen(block, forward=name)
        if self.inside and isinstance(block, MixerBlock):
            for mixing, norm, drop in (
                ("token_mixing", "norm1", "drop1"), ("channel_mixing", "norm2", "drop2"),
            ):  # fmt: skip
                mlp = getattr(block, mixing)
                if isinstance(mlp, MixerMLP):
                    mlp = self.listen(mlp, hidden=f"{name}.{mixing}.hidden")
                vars(found).update({
                    norm: self.listen(getattr(block, norm), forward=f"{name}.{norm}"), mixing: mlp,
                    drop: self.listen(getattr(block, drop), forward=f"{name}.{mixing}"),
                })  # fmt: skip
        return found

    def listen(self, module: Any, **names: str) -> Any:
        """A copy of a Module with the same attributes, of which the methods named tell what they
        returned, under these names."""
        if not isinstance(module, Module):  # a function in its place
            return self.told(module, *names.values())
        found = copy.copy(module)
        self.copies.append(found)
        for name, value in vars(module).items():
            if isinstance(value, MethodType) and value.__self__ is module:
                vars(found)[name] = MethodType(value.__func__, found)
        for method, name in names.items():
            vars(found)[method] = self.told(getattr(found, method), name)
        return found

    def told(self, method: Callable, name: str) -> Callable:
        def run(*inputs: Any, **options: Any) -> Any:
            result = method(*inputs, **options)
            self.tell(name, result)
            return result

        return run
