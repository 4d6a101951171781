"""What frozen features know: a linear classifier in closed form, from a few examples a class.

The paper's few-shot measure. Features x of the training images are standardised, (x - mean) / std
for each of the C; targets are +1 for an example's class and -1 for the others; and the weights that
minimise the squared error plus `strength` times their squares solve a linear system:

    (X^T X + strength I) W = X^T Y        X (n, C + 1), its last column ones, for the bias

For fewer examples than features the same W comes from a smaller system, n x n:

    W = X^T (X X^T + strength I)^-1 Y     as X^T (X X^T + s I) = (X^T X + s I) X^T

Since standardising is linear too, it is folded into the result: a weight and a bias for the
features as they are, which can be a model's head.

>>> import numpy as np
>>> from minimixer.weights.probe import ridge
>>> x = np.array([[0.0, 5.0], [1.0, 5.0], [4.0, 5.0], [5.0, 5.0]])
>>> weight, bias = ridge(x, np.array([0, 0, 1, 1]), num_classes=2, strength=1.0)
>>> (x @ weight + bias).argmax(axis=1)
array([0, 0, 1, 1])
"""

import numpy as np

from ..engine.arrays import to_numpy
from ..engine.grad_mode import no_grad
from ..engine.random import Purpose, random_bits
from ..model.mixer import Mixer
from ..nn.layers import evaluating

SMALLEST_STD = 1e-6  # a feature that never changes is left out


def ridge(
    features: np.ndarray, labels: np.ndarray, num_classes: int, strength: float = 2.0**10
) -> tuple[np.ndarray, np.ndarray]:
    """features (n, C), labels (n,) -> weight (C, K) and bias (K,), float64. `strength` as in the
    paper's code. ValueError on shapes, labels outside 0..K-1, features that are not finite."""
    features, labels = np.asarray(features, dtype=np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        shapes = f"{features.shape} and {labels.shape}"
        raise ValueError(f"ridge: features must be (n, C) and labels (n,), got {shapes}")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"ridge: labels must be whole numbers from 0 to {num_classes - 1}")
    if not np.isfinite(features).all() or not strength > 0:
        raise ValueError("ridge: features must be finite, and strength positive")
    mean, std = features.mean(axis=0), features.std(axis=0)
    scale = np.where(std > SMALLEST_STD, 1 / np.maximum(std, SMALLEST_STD), 0.0)
    x = np.append((features - mean) * scale, np.ones((len(features), 1)), axis=1)
    y = np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)
    if len(x) < x.shape[1]:
        solved = x.T @ np.linalg.solve(x @ x.T + strength * np.eye(len(x)), y)
    else:
        solved = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ y)
    weight = solved[:-1] * scale[:, None]
    return weight, solved[-1] - mean @ weight


def choose_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Positions of `shots` examples of every class, drawn by the seed. ValueError if a class has
    fewer."""
    labels = np.asarray(labels)
    order = np.argsort(random_bits(seed, Purpose.SHUFFLE, 0, 0, 0, np.arange(len(labels))))
    chosen = []
    for label in np.unique(labels):
        found = order[labels[order] == label]
        if len(found) < shots:
            raise ValueError(f"class {label} has {len(found)} examples, fewer than {shots} shots")
        chosen.append(found[:shots])
    return np.concatenate(chosen)


def pooled_features(model: Mixer, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """What a model without a head (else ValueError) makes of images (N, H, W, in): (N, C)."""
    if model.head is not None:
        raise ValueError("pooled_features: the model has a head; load it with num_classes=0")

    with no_grad(), evaluating():
        parts = [
            to_numpy(model(images[i : i + batch_size]).data)
            for i in range(0, len(images), batch_size)
        ]
    return np.concatenate(parts)
