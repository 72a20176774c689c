"""Reading many files at once, with a progress bar."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm.auto import tqdm


Item = TypeVar("Item")
Result = TypeVar("Result")


def read_all(read: Callable[[Item], Result], items: Sequence[Item], description: str) -> list[Result]:
    """What `read` gives for each item, in order; threads read ahead."""
    pool = ThreadPoolExecutor()
    try:
        return list(tqdm(pool.map(read, items), desc=description, total=len(items), leave=False))
    finally:  # When interrupted, do not read all the rest.
        pool.shutdown(cancel_futures=True)
