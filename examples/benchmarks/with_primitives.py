"""The Mixer composed of primitives, in the paper's layout: for HIPS autograd and for MyGrad.

For benchmark_peers.py, which tells what the settings mean. Neither has an optimizer: `gradients`
and `inference` are what can be timed.
"""

import gc
import importlib
import math
from importlib.metadata import version

import numpy as np

from benchmarks.peers import NORM_EPSILON, Peer


class Mixer:
    """`xp` is the library's namespace: NumPy's functions, recorded."""

    def __init__(self, xp, config: dict):
        self.xp, self.config = xp, config

    def linear(self, x, weight, bias):
        rows = self.xp.reshape(x, (-1, x.shape[-1]))  # one product, not one for each image
        return self.xp.reshape(self.xp.matmul(rows, weight), (*x.shape[:-1], -1)) + bias

    def mlp(self, x, w1, b1, w2, b2):
        u = self.linear(x, w1, b1)
        t = self.xp.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u * u * u))
        return self.linear(0.5 * u * (1 + t), w2, b2)

    def layer_norm(self, x, weight, bias):
        xp = self.xp
        x = x - xp.mean(x, axis=-1, keepdims=True)
        variance = xp.mean(x * x, axis=-1, keepdims=True)
        return x / xp.sqrt(variance + NORM_EPSILON) * weight + bias

    def logits(self, weights: dict, x):
        """x: patches (B, S, P P in)."""

        def of(name, *parts):
            return [weights[f"{name}.{part}"] for part in parts]

        x = self.linear(x, *of("stem", "weight", "bias"))
        for i in range(self.config["num_blocks"]):
            w1, b1, w2, b2 = of(f"blocks.{i}.token_mixing", "w1", "b1", "w2", "b2")
            y = self.layer_norm(x, *of(f"blocks.{i}.norm1", "weight", "bias"))
            y = self.mlp(self.xp.swapaxes(y, 1, 2), w1, b1, w2.T, b2)
            x = x + self.xp.swapaxes(y, 1, 2)
            y = self.layer_norm(x, *of(f"blocks.{i}.norm2", "weight", "bias"))
            x = x + self.mlp(y, *of(f"blocks.{i}.channel_mixing", "w1", "b1", "w2", "b2"))
        x = self.xp.mean(self.layer_norm(x, *of("norm", "weight", "bias")), axis=1)
        return self.linear(x, *of("head", "weight", "bias"))

    def loss(self, logits, labels):
        xp, values = self.xp, getattr(logits, "data", logits)
        highest = getattr(logits, "_value", values).max(axis=1, keepdims=True)  # a constant
        z = logits - highest
        rows = np.arange(len(labels))
        return xp.mean(xp.log(xp.sum(xp.exp(z), axis=1)) - z[rows, labels])


def cut_patches(images, patch: int):
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


def autograd(weights, images, labels, settings) -> Peer:
    import autograd

    model = Mixer(importlib.import_module("autograd.numpy"), settings["config"])
    x = cut_patches(images, settings["config"]["patch_size"])
    function = autograd.value_and_grad(lambda w: model.loss(model.logits(w, x), labels))

    def check():
        loss, found = function(weights)
        return model.logits(weights, x), float(loss), found

    work = {
        "gradients": lambda: lambda: function(weights)[0],
        "inference": lambda: lambda: model.logits(weights, x),
    }
    return Peer(version("autograd"), work, check, gc.collect, dict)


def mygrad(weights, images, labels, settings) -> Peer:
    import mygrad as mg

    model = Mixer(mg, settings["config"])
    x = cut_patches(images, settings["config"]["patch_size"])
    tensors = {name: mg.tensor(value) for name, value in weights.items()}

    def check():
        logits = model.logits(tensors, x)
        found = logits.data.copy()
        loss = model.loss(logits, labels)
        loss.backward()
        return found, loss.item(), {name: p.grad.copy() for name, p in tensors.items()}

    def step():
        loss = model.loss(model.logits(tensors, x), labels)
        loss.backward()
        return loss.item()

    def inference():
        with mg.no_autodiff:
            return model.logits(tensors, x).data

    work = {"gradients": lambda: step, "inference": lambda: inference}
    return Peer(version("mygrad"), work, check, gc.collect, dict)
