"""Times of steps, and how they are told: the median of all turns and how far they lie apart.

>>> spread(ratios([1.0, 3.0, 2.0], [2.0, 2.0, 2.0]))
'1.000 (0.500 to 1.500)'
"""

import statistics
import time
from collections.abc import Callable, Sequence


def time_steps(step: Callable, settings: dict) -> list[float]:
    """Seconds of each of `settings["steps"]` steps, or of as many as `settings["seconds"]` hold."""
    times: list[float] = []
    steps, left = settings["steps"], settings["seconds"]
    while len(times) < steps if steps else len(times) < 5 or left > 0:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
        left -= times[-1]
    return times


def spread(values: Sequence[float]) -> str:
    """Of ratios, say."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Turn by turn: machines are noisy, and are so for both."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]
