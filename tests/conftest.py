"""One body for every device, and Hypothesis profiles.

`device` runs a test once on the CPU and, where CuPy finds a GPU, once there; elsewhere that half
is skipped with the reason. HYPOTHESIS_PROFILE=long draws thirty times as many examples.
`reference` switches the fast twins off, for tests of what the plain code keeps, calls or gets wrong
when a mistake is planted in it. With `-n` BLAS has one thread in each worker and in what it starts,
since those of several would wait for each other; with `blas_threads` it has two.
"""

import os

# Before NumPy is imported, which reads it once.
os.environ |= {"OPENBLAS_NUM_THREADS": "1"} if "PYTEST_XDIST_WORKER" in os.environ else {}

import pytest
from hypothesis import HealthCheck, settings
from strategies import reference_functions

from minimixer import backend
from minimixer.kernels.cpu import threads

_checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=16, suppress_health_check=_checks
)
settings.register_profile("long", settings.get_profile("ci"), derandomize=False, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def _why_no_gpu() -> str | None:
    try:
        backend.check_device("cuda")
    except ValueError as error:
        return str(error)
    return None


_no_gpu = _why_no_gpu()
_cuda = pytest.param("cuda", marks=pytest.mark.skipif(_no_gpu is not None, reason=f"{_no_gpu}"))


@pytest.fixture
def reference():
    with reference_functions():
        yield


@pytest.fixture
def blas_threads():
    """At least two: with one the fast forms start none of their own."""
    get_count, set_count = threads._blas() or (lambda: 0, lambda count: None)
    before = get_count()
    set_count(max(2, before))
    yield
    set_count(before)


@pytest.fixture(params=["cpu", _cuda])
def device(request) -> str:
    return request.param


@pytest.fixture(params=[_cuda])
def gpu(request) -> str:
    return request.param
