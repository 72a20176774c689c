"""Interleaved rounds, and what they say: medians, percentiles, and ratios with their spread.

On a machine that also does other things, times drift. So every round runs everything once, in an order drawn anew,
and a ratio is taken within a round: what slows a whole round cancels.
"""

import random
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import median

from tqdm.auto import tqdm


# Seconds of every call, by round.
RoundTimes = list[list[float]]


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    lower: float
    upper: float

    def __str__(self) -> str:
        """`1.23 (1.20 to 1.25)`."""
        return f"{self.median:.2f} ({self.lower:.2f} to {self.upper:.2f})"


def quantile(values: Sequence[float], part: float) -> float:
    """Value that `part` of the values lie below, between two of them if need be.

    Example:
    ```python
    >>> from benchmarks.measuring import quantile

    >>> quantile([4.0, 1.0, 2.0], 0.5), quantile([1.0, 2.0], 0.25)
    (2.0, 1.25)

    ```
    """
    ordered = sorted(values)
    position = part * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    return Spread(*(quantile(values, part) for part in (0.5, 0.25, 0.75)))


def interleaved_times(
    runs: dict[Hashable, Callable[[], None]],
    rounds: int,
    seed: int = 0,
    min_seconds: float = 0.0,
    wait: Callable[[], None] = lambda: None,
) -> dict[Hashable, RoundTimes]:
    """Seconds of every call of each of `runs`, by round.

    Args:
        runs: What to measure.
        rounds: How often everything is run.
        seed: For the order within each round.
        min_seconds: In a round, call a thing until this time is over; at least once.
        wait: Returns when the device has finished.
    """
    times = {name: [] for name in runs}
    order = list(runs)
    shuffle = random.Random(seed).shuffle
    for _ in tqdm(range(rounds), desc="Rounds", leave=False, disable=None):
        shuffle(order)
        for name in order:
            times[name].append(call_times(runs[name], min_seconds, wait))
    return times


def call_times(run: Callable[[], None], min_seconds: float, wait: Callable[[], None]) -> list[float]:
    """Seconds of each call, until `min_seconds` are over."""
    times = []
    while not times or sum(times) < min_seconds:
        wait()
        start = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - start)
    return times


def all_times(times: RoundTimes) -> list[float]:
    """Seconds of every call of every round."""
    return [seconds for of_round in times for seconds in of_round]


def speedups(times: RoundTimes, baseline: RoundTimes) -> list[float]:
    """For each round, how many times as fast as the baseline."""
    return [median(of_baseline) / median(of_round) for of_round, of_baseline in zip(times, baseline, strict=True)]
