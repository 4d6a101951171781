"""A training step, taken by each of several processes and recorded on a GPU.

    step = SharedStep(train_step, model, optimizer, world, options)
    loss, right = step(counts, images, labels)      # each process has images of its own
    loss, right = step.split(images, labels)        # each has all, and takes its part

Within it each process may cut its part up once more, to save memory: `parts`.
"""

import itertools
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from minimixer import Mixer, record
from minimixer.parallel import World
from minimixer.training.optim import Optimizer


class SharedStep:
    """step(counts, *arrays), for train_step(*arrays, count=, first=), recorded as a CUDA graph if
    options.graph says so. Gradients are summed while backward goes on, if there is one backward.

    counts  how many examples each rank has; the arrays are those of this rank
    count   all of them;  first  the number among them of this rank's first
    """

    def __init__(
        self, train_step: Callable, model: Mixer, optimizer: Optimizer, world: World,
        options: Namespace,
    ):  # fmt: skip
        if options.accumulate == 1:
            world.overlap(model)
        self.world, self.alone = world, train_step
        self.recorded = record(train_step, model, optimizer, graph=options.graph)
        self.plain = record(train_step, model, optimizer, graph="off")
        if world.size > 1:  # one rank that doesn't record would wait for the others' sums
            warnings.filterwarnings("error", message=".*could not be recorded")

    def __call__(self, counts: Sequence[int], *arrays: Any) -> Any:
        rank = self.world.rank
        where = {"count": int(sum(counts)), "first": int(sum(counts[:rank]))}
        if min(counts):
            return self.recorded(*arrays, **where)
        # Some rank has no examples, and nothing to record: then no rank may, as a recording holds
        # the sum of all ranks' gradients.
        return (self.plain if counts[rank] else self.alone)(*arrays, **where)

    def split(self, *arrays: Any) -> Any:
        """The same where every rank has all the examples."""
        count = len(arrays[0])
        mine = self.world.part(count)
        return self(self.world.counts(count), *(array[mine] for array in arrays))


def parts(size: int, count: int) -> list[slice]:
    """`size` examples in `count` parts, as even as it goes; none is empty."""
    borders = [size * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(borders) if a < b]
