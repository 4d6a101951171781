"""Other kernels for a while, and then those that were chosen before."""

import contextlib
from collections.abc import Iterator

from minimixer import kernels


@contextlib.contextmanager
def using(which: str) -> Iterator[None]:
    before = kernels.chosen()
    kernels.use(which)
    try:
        yield
    finally:
        kernels.use(before)
