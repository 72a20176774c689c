"""Random variation that depends on the seed, the epoch and the example alone.

Neither the number of workers or processes matters, nor what was drawn before. So a run that is resumed in the middle
of an epoch sees the same pixels, and all other random numbers of a run, such as drop path's, stay as they were.
"""

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from transformers import TrainerCallback


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Within it, random numbers of Python, NumPy and torch (on the CPU) follow from `key`; then they go on as before.

    timm's transforms draw from all three.
    """
    seed, large_seed = np.random.SeedSequence(key).generate_state(2, np.uint64).tolist()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(large_seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(large_seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


class VariedExamples:
    """What knows the seed and the epoch; data sets of examples inherit from it.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # Workers that live on see it change.

    def set_epoch(self, epoch: int) -> None:
        """Vary from now on as in `epoch`, also in worker processes that are there already.

        Accelerate's loaders pass on the epoch in some cases only, so call this at the start of each.
        """
        self.epoch.fill_(epoch)

    def variation(self, index: int) -> AbstractContextManager[None]:
        """Within it, random numbers are those of an example in this epoch."""
        return seeded(self.seed, int(self.epoch), index)


class EpochTeller(TrainerCallback):
    """Tells the Trainer's examples which epoch it is: Accelerate's loaders do not when they skip or divide batches."""

    def __init__(self, dataset: VariedExamples):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Pass on the number of whole epochs."""
        self.dataset.set_epoch(int(state.epoch or 0))
