"""A whole training run: batch after batch, forward, backward, and a step of the optimizer.

All that came before meets here. An epoch goes once through the images; each step draws a batch,
asks how wrong the model is on it (the loss), how the loss would change with every weight (the
gradients, by backward), moves the weights a little against that, and forgets the gradients.

>>> from minimixer import Mixer, data
>>> from minimixer.training.loop import accuracy, train
>>> images, labels, test_images, test_labels = data.load_mnist()
>>> model = Mixer(image_size=28, patch_size=7, in_channels=1, num_classes=10, num_blocks=2,
...               hidden_dim=32, tokens_mlp_dim=16, channels_mlp_dim=64)
>>> losses = train(model, images[:4000], labels[:4000], epochs=4, batch_size=64, lr=0.01)
>>> losses[0] > 1 > losses[-1], accuracy(model, test_images[:1000], test_labels[:1000]) > 0.8
(True, True)

One step goes through these pages. (To follow it in a debugger, set MINIMIXER_KERNELS=reference:
otherwise kernels/ does the work of the trunk, of products and of AdamW, the same and faster.)

    data.py         Batches.epoch; in a thread, batch   images and labels
    schedules.py    schedule                            the optimizer's lr_factor
    mixer.py        Mixer.forward, pooled, trunk
    images.py       to_tokens; model/inputs.py          tokens (S, B, P*P*in): rearrange.py
    mixer.py        stem, a Linear of layers.py         (S, B, C)
    block.py        MixerBlock, MixerMLP                (S, B, C), by way of
                    layers.py       LayerNorm, StochasticDepth as Modules
                    functional.py   linear_first, linear, gelu;  layer_norm.py;  ops.py's Add
                    autograd.py     Function.apply: matched; choose, run (dispatch.py); record
    mixer.py        mean (rearrange.py), head           scores (B, K): a Linear too
    loss.py         cross_entropy, targets.py           the loss
    backward.py     backward: from the last node to the first, each by its own backward
    parameters.py   accumulate_grad                     where each weight's gradient lies
    optimizer.py    Optimizer.step, update_ranges       stretch after stretch of the buffer
    optim.py        AdamW.update                        the weights move
    optimizer.py    zero_grad

This is the end of the book. `examples/train_mnist.py` has the same loop, and all that makes a long
run last: checkpoints, clipping, several processes, recorded steps on a GPU.
"""

import numpy as np

from ..engine.checks import check_sizes
from ..model.mixer import Mixer
from ..nn import functional as F
from .data import Batches
from .optim import AdamW
from .schedules import schedule


def train(
    model: Mixer, images: np.ndarray, labels: np.ndarray, epochs: int, batch_size: int = 128,
    lr: float = 1e-3, weight_decay: float = 0.05, max_shift: int = 1, seed: int = 0,
) -> list[float]:  # fmt: skip
    """Train with AdamW, a tenth of the steps warming up, then along half a cosine; returns the mean
    loss of each epoch. images (N, H, W, channels), uint8; labels (N,). Errors of Batches, AdamW."""
    check_sizes(epochs=epochs)
    batches = Batches(images, labels, batch_size, seed, max_shift)
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    steps, step, losses = epochs * len(batches), 0, []
    model.train()
    optimizer.zero_grad()  # of what came before
    for epoch in range(epochs):
        total = 0.0
        for batch, targets in batches.epoch(epoch):
            optimizer.lr_factor = schedule(step, steps, warmup_steps=steps // 10)
            loss = F.cross_entropy(model(batch), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(targets)
            step += 1
        losses.append(total / len(images))
    return losses


def accuracy(model: Mixer, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images (N, H, W, channels) that the model, no block skipped, puts into the class
    that labels (N,) say. ValueError for another number of labels."""
    if np.shape(labels) != (len(images),):
        raise ValueError(f"accuracy: {len(images)} images, but labels of shape {np.shape(labels)}")
    return float((model.predict(images) == labels).mean())
