"""How good a model's answers are: accuracy, top k, the mean loss, and the accuracy of each class.

All of it from logits. A probability has been rounded: where the true class has 1e-40, float32 says
0, and its logarithm is lost. Everything is a sum over examples, so that batches add up, and the
parts of several processes, too.

>>> import numpy as np
>>> from minimixer.training.metrics import Metrics
>>> logits = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 1000.0, 0.0]])
>>> metrics = Metrics(num_classes=3).add(logits, np.array([0, 1, 2]))
>>> round(metrics.accuracy, 2), round(metrics.top(2), 2), metrics.per_class.tolist()
(0.33, 0.67, [1.0, 0.0, 0.0])
>>> round(metrics.loss, 2)
333.94
"""

from collections.abc import Callable

import numpy as np

from ..engine.arrays import Array
from ..engine.checks import check_sizes
from ..engine.dispatch import replaceable  # a fast form (kernels/) may do its work
from ..engine.tensor import Tensor
from ..model.mixer import Mixer
from ..nn.more_loss import log_softmax


@replaceable
def correct(logits: Array, labels: Array) -> Array:
    """How many rows of logits (B, K) are largest at their label (B,): a 0-d array, on the device.
    For training steps, which must not wait for it."""
    right = logits.argmax(axis=1) == labels
    return right.astype(np.int64).sum()  # a sum of bool takes CuPy four seconds to compile


def ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes of each row (N, K) come before its label: 0 is right. Of equal logits the
    first comes first; K, which is never right, if the loss of the row would not be finite."""
    true = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    found = ((logits > true) | ((logits == true) & earlier)).sum(axis=1)  # sorting takes 8x memory
    lost = ~(logits < np.inf).all(axis=1) | (true[:, 0] == -np.inf)  # NaN is not below infinity
    return np.where(lost, logits.shape[1], found)


def losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log p of each row's label, as cross_entropy has it, in float64: (N,)."""
    return -log_softmax(logits.astype(np.float64))[np.arange(len(labels)), labels]


class Metrics:
    """Sums over labelled examples of `num_classes` classes. Without examples the means are NaN."""

    class_counts: np.ndarray
    class_right: np.ndarray

    def __init__(self, num_classes: int):
        check_sizes(num_classes=num_classes)
        self.num_classes = k = num_classes
        # the loss; of each class: examples, right ones; ranks
        self.sums: np.ndarray = np.zeros(1 + 3 * k)
        self.class_counts, self.class_right, self._ranks = (
            self.sums[1 + i * k : 1 + (i + 1) * k] for i in range(3)
        )

    def add(self, logits: Array, labels: Array) -> "Metrics":
        """Count a batch: logits (B, K), labels (B,) from 0 to K - 1; ValueError on others."""
        logits, labels = (Tensor(a).numpy() for a in (logits, labels))
        if labels.ndim != 1 or logits.shape != (*labels.shape, self.num_classes):
            raise ValueError(f"Metrics of {self.num_classes} classes: logits (B, K) and labels "
                             f"(B,) are {logits.shape} and {labels.shape}")  # fmt: skip
        if labels.dtype.kind not in "iu" or ((labels < 0) | (labels >= self.num_classes)).any():
            raise ValueError(
                f"Metrics: labels must be whole numbers from 0 to {self.num_classes - 1}, "
                f"got {labels[:8]} of {labels.dtype}"
            )
        rank = ranks(logits, labels)
        self.sums[0] += losses(logits, labels).sum()
        np.add.at(self.class_counts, labels, 1)
        np.add.at(self.class_right, labels[rank == 0], 1)
        np.add.at(self._ranks, rank[rank < self.num_classes], 1)
        return self

    def over(self, add_up: Callable[[np.ndarray], np.ndarray]) -> "Metrics":
        """With the examples of all processes: `add_up` is World.sum."""
        self.sums[...] = add_up(self.sums)
        return self

    @property
    def count(self) -> int:
        return int(self.class_counts.sum())

    @property
    def loss(self) -> float:
        """The mean of `losses`."""
        return float(self.sums[0] / self.count) if self.count else float("nan")

    @property
    def accuracy(self) -> float:
        return self.top(1)

    def top(self, k: int) -> float:
        """The share of examples whose class is among the k largest logits; ValueError if k < 1."""
        check_sizes(k=k)
        return float(self._ranks[:k].sum() / self.count) if self.count else float("nan")

    @property
    def per_class(self) -> np.ndarray:
        """The accuracy of each class (K,); NaN where it has no examples."""
        none = self.class_counts == 0
        return np.where(none, np.nan, self.class_right / np.where(none, 1, self.class_counts))


def evaluate(
    model: Mixer, images: np.ndarray, labels: np.ndarray, batch_size: int = 256
) -> Metrics:
    """Metrics of `model` on images (N, H, W, in) and labels (N,), computed without dropout."""
    check_sizes(batch_size=batch_size)
    if model.num_classes == 0:
        raise ValueError("evaluate: this model has no head (num_classes=0)")
    found = Metrics(model.num_classes)
    for i in range(0, len(labels), batch_size):
        part = slice(i, i + batch_size)
        found.add(model.predict_logits(images[part], batch_size), labels[part])
    return found
