"""What a forward pass computes on its way: a model that tells what its parts return.

Nothing is computed a second time by other code. A copy of the model, with the same Parameters, runs
as the model does; in place of some methods it has ones that call them and tell what they returned.

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

from collections.abc import Callable
from typing import Any

from ..engine.tensor import Tensor
from .block import MixerBlock, MixerMLP

Tell = Callable[[str, Tensor], None]  # the name of a part, and what it returned


def telling(model: Any, tell: Tell) -> Any:
    """A copy of a Mixer that tells what its parts return, tokens first as the model has them."""
    copy = _listen(model, {"patches": "patches", "pooled": "pooled"}, tell)
    stem, norm = _listen(model.stem, "tokens", tell), _listen(model.norm, "norm", tell)
    blocks = [_block(block, f"blocks.{i}", tell) for i, block in enumerate(model.blocks)]
    vars(copy).update(stem=stem, blocks=blocks, norm=norm, checkpoint_blocks=False)
    return copy


def _block(block: Any, name: str, tell: Tell) -> Any:
    """A block of one's own is one part. In the paper's, what is added is what drops let through."""
    copy = _listen(block, name, tell)
    if isinstance(block, MixerBlock):
        for mixing, norm, drop in (
            ("token_mixing", "norm1", "drop1"), ("channel_mixing", "norm2", "drop2"),
        ):  # fmt: skip
            mlp = getattr(block, mixing)
            if isinstance(mlp, MixerMLP):
                mlp = _listen(mlp, {"hidden": f"{name}.{mixing}.hidden"}, tell)
            vars(copy).update({
                norm: _listen(getattr(block, norm), f"{name}.{norm}", tell), mixing: mlp,
                drop: _listen(getattr(block, drop), f"{name}.{mixing}", tell),
            })  # fmt: skip
    return copy


def _listen(module: Any, names: str | dict[str, str], tell: Tell) -> Any:
    """A copy of a Module with the same attributes. Of each method in `names` (alone: of forward),
    it tells under that name what it returned."""
    copy = object.__new__(type(module))
    vars(copy).update(vars(module))
    for method, name in ({"forward": names} if isinstance(names, str) else names).items():
        vars(copy)[method] = _told(getattr(copy, method), name, tell)
    return copy


def _told(method: Callable, name: str, tell: Tell) -> Callable:
    def run(*inputs: Any, **options: Any) -> Any:
        result = method(*inputs, **options)
        tell(name, result)
        return result

    return run
