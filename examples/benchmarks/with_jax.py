"""The Mixer in JAX (Flax, optax), as its users run it: the whole step in one jit that is donated
weights and optimizer.

For benchmark_peers.py, which tells what the settings mean.
"""

import gc
import os
from typing import Any

import numpy as np

from benchmarks.peers import ADAM_EPSILON, BETAS, NORM_EPSILON, Peer


def peer(weights: dict, images: np.ndarray, labels: np.ndarray, settings: dict) -> Peer:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["JAX_PLATFORMS"] = settings["device"]
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen as nn
    from flax.traverse_util import flatten_dict, unflatten_dict

    config = settings["config"]
    products = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": None}
    jax.config.update("jax_default_matmul_precision", products[settings["precision"]])
    low = jnp.bfloat16 if settings["precision"] == "bfloat16" else jnp.float32
    targets = jnp.array(labels, jnp.int32)
    planned = {}  # bytes, of the work compiled last

    class MLP(nn.Module):
        hidden: int

        @nn.compact
        def __call__(self, x):
            y = nn.Dense(self.hidden, dtype=low, name="fc1")(x)
            return nn.Dense(x.shape[-1], dtype=low, name="fc2")(nn.gelu(y, approximate=True))

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.LayerNorm(epsilon=NORM_EPSILON, dtype=low, name="norm1")(x).swapaxes(1, 2)
            x = x + MLP(config["tokens_mlp_dim"], name="token_mixing")(y).swapaxes(1, 2)
            y = nn.LayerNorm(epsilon=NORM_EPSILON, dtype=low, name="norm2")(x)
            return x + MLP(config["channels_mlp_dim"], name="channel_mixing")(y)

    class Mixer(nn.Module):
        logits_dtype: Any = jnp.float32

        @nn.compact
        def __call__(self, x):
            side, width = (config["patch_size"],) * 2, config["hidden_dim"]
            x = nn.Conv(width, side, strides=side, padding="VALID", dtype=low, name="stem")(x)
            x = x.reshape(len(x), -1, width)
            for i in range(config["num_blocks"]):
                x = Block(name=f"blocks_{i}")(x)
            x = nn.LayerNorm(epsilon=NORM_EPSILON, dtype=low, name="norm")(x).mean(axis=1)
            return nn.Dense(config["num_classes"], dtype=self.logits_dtype, name="head")(x)

    def load(dtype=jnp.float32):
        flat = {name: jnp.array(value, dtype) for name, value in weights.items()}
        return unflatten_dict(flat, sep="."), jnp.array(images, dtype)

    def loss_of(params, images, labels):
        logits = Mixer().apply({"params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), logits

    def compile_for(function, *arguments, donate=()):
        compiled = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
        if plan := compiled.memory_analysis():
            results = plan.output_size_in_bytes - plan.alias_size_in_bytes  # alias: donated
            planned["planned_bytes"] = (
                plan.argument_size_in_bytes + results + plan.temp_size_in_bytes
            )
        return compiled

    def train():
        params, inputs = load()
        matrices = jax.tree.map(lambda p: p.ndim > 1, params)
        optimizer = optax.adamw(
            settings["lr"], *BETAS, eps=ADAM_EPSILON,
            weight_decay=settings["weight_decay"], mask=matrices,
        )  # fmt: skip
        state = optimizer.init(params)

        def update(params, state, images, labels):
            gradient = jax.value_and_grad(loss_of, has_aux=True)
            (loss, _), gradients = gradient(params, images, labels)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, loss

        compiled = compile_for(update, params, state, inputs, targets, donate=(0, 1))

        def step():
            nonlocal params, state
            params, state, loss = jax.block_until_ready(compiled(params, state, inputs, targets))
            return loss

        return step

    def gradients():
        params, inputs = load()
        compiled = compile_for(jax.value_and_grad(loss_of, has_aux=True), params, inputs, targets)

        def step():
            (loss, _), _ = jax.block_until_ready(compiled(params, inputs, targets))
            return loss

        return step

    def inference():
        params, inputs = load(low)
        predict = compile_for(lambda p, x: Mixer(low).apply({"params": p}, x), params, inputs)
        return lambda: jax.block_until_ready(predict(params, inputs))

    def check():
        params, inputs = load()
        gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
        (loss, logits), found = jax.device_get(gradient(params, inputs, targets))
        return logits, loss, flatten_dict(found, sep=".")

    def memory():
        if settings["device"] == "cpu":
            return {}
        stats = jax.devices()[0].memory_stats() or {}
        peak, reserved = stats.get("peak_bytes_in_use"), stats.get("peak_pool_bytes")
        return {"peak_bytes": peak, "reserved_bytes": reserved, **planned}

    work = {"train": train, "gradients": gradients, "inference": inference}
    return Peer(jax.__version__, work, check, gc.collect, memory)
