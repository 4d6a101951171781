"""What a script runs on: its name, and the most memory that some work takes there.

Only what comes with Python is imported at once: also the peers of benchmark.py, which have packages
of their own, are measured with this.
"""

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path


def gpu_name(device: str) -> str:
    """The card, for "cuda:N", and the version of CuPy."""
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(int(device[5:]))["name"].decode()
    return f"{name}, CuPy {cupy.__version__}"


def pool_peak(work: Callable[[], None]) -> int:
    """The most bytes of CuPy's pool that are in use during `work`."""
    import cupy

    pool = cupy.get_default_memory_pool()

    class Hook(cupy.cuda.MemoryHook):
        name, most = "peak", 0

        def malloc_postprocess(self, **_):
            self.most = max(self.most, pool.used_bytes())

    with Hook() as hook:
        work()
    return hook.most


class Growth:
    """By how much this process's memory has grown since, at its peak."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # Linux: forget how large it once was
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self.before = self._resident("VmRSS")

    def bytes(self) -> int:
        return max(0, self._resident("VmHWM") - self.before)

    @staticmethod
    def _resident(which: str) -> int:
        with contextlib.suppress(OSError):
            found = re.search(
                rf"{which}:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8")
            )
            if found:
                return 1024 * int(found[1])
        import resource  # which Windows lacks

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
