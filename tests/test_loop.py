"""training/loop.py: a whole run on one page. Its example shows that it learns."""

import numpy as np
import pytest

from minimixer import AdamW, Mixer, data
from minimixer import functional as F
from minimixer.training.loop import accuracy, train

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (10, 8, 8, 1)).astype(np.uint8)
LABELS = RNG.integers(0, 3, 10)


def small():
    return Mixer(8, 4, 2, 16, 8, 32, in_channels=1, num_classes=3)


def test_it_is_the_loop_that_one_would_write():
    found, model = small(), small()
    losses = train(found, IMAGES, LABELS, epochs=2, batch_size=4, lr=0.01, max_shift=0, seed=3)
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
    batches, expected = data.Batches(IMAGES, LABELS, 4, seed=3), []
    for epoch in range(2):
        total = 0.0
        for index in range(3):
            step = 3 * epoch + index
            optimizer.lr_factor = 0.5 * (1 + np.cos(np.pi * step / 6))
            images, labels = batches.batch(epoch, index)
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(labels)
        expected.append(total / 10)
    np.testing.assert_allclose(losses, expected)
    np.testing.assert_array_equal(found.buffer.values, model.buffer.values)


def test_gradients_of_before_do_not_count():
    fresh, used = small(), small()
    F.cross_entropy(used(IMAGES), LABELS).backward()
    for model in (fresh, used):
        train(model, IMAGES, LABELS, epochs=1, batch_size=4)
    np.testing.assert_array_equal(fresh.buffer.values, used.buffer.values)


@pytest.mark.parametrize("epochs", [0, -1, 1.5, "2"])
def test_epochs_that_are_none(epochs):
    with pytest.raises(ValueError, match="epochs"):
        train(small(), IMAGES, LABELS, epochs)


@pytest.mark.parametrize("labels", [LABELS[:1], LABELS[:, None]])
def test_accuracy_needs_a_label_for_each_image(labels):
    with pytest.raises(ValueError, match="10 images, but labels of shape"):
        accuracy(small(), IMAGES, labels)
