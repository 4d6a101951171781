"""One model, several processes: each takes a part of the batch, and gradients are summed.

The gradient of a sum is the sum of the gradients. So N processes, each with the whole model, can
share the examples of a batch: each computes the gradient of its own, they add these up, and all
take the same step, which keeps the models equal. This is data parallelism. `mpirun -n 4 python
script.py` starts the script four times; a process's number, from 0, is its rank. What lies below
is only what they have to agree on; MPI (through mpi4py) and, between GPUs, NCCL (through CuPy)
carry it.

    world.py    who am I, which part is mine; the same start; sums; agreeing, and ending together
    sums.py     how arrays are summed: in two exchanges on the CPU, by NCCL on GPUs
    overlap.py  sums while backward goes on
    same.py     are all ranks doing the same thing?

A script started without mpirun is a world of one, in which all of this does next to nothing:

>>> import numpy as np
>>> from minimixer import SGD, Linear
>>> from minimixer import functional as F
>>> from minimixer.parallel import code, start
>>> model, images, labels = Linear(4, 2), np.eye(4, dtype="float32"), np.array([0, 1, 1, 0])
>>> optimizer = SGD(model.parameters(), lr=1.0)
>>> with start() as world:
...     device = world.use("cpu")                     # "cuda": this rank's own GPU
...     world.check_same(code=code(), data=images, weights=model.parameters()[0].buffer.values)
...     world.broadcast(model, optimizer)
...     part = world.part(len(images))                # which examples are mine
...     loss = F.cross_entropy(model(images[part]), labels[part], reduction="sum") / len(images)
...     loss.backward()
...     world.sum_gradients(model)
...     optimizer.step()
...     total, stop = world.sum([loss, False])        # of all ranks, known to all
>>> world.rank, world.size, part, round(float(total), 3), bool(stop)
(0, 1, slice(0, 4, None), 0.733, False)

What is random does not depend on the number of ranks if each says which example of the batch its
part begins with: `model.random.start_at(part.start)`.

Next: `world.py`.
"""

from .same import code
from .world import World, start

__all__ = ["World", "code", "start"]
