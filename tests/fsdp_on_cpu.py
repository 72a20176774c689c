"""Run a script whose Accelerate shards models on CPUs too: PyTorch's FSDP2 can, but Accelerate asks for GPUs."""

import os
import runpy
import sys

import torch.distributed
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def main() -> None:
    """Run the script that is the first argument, with the others."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *arguments, **options: ("gloo", DistributedType.MULTI_GPU)
    torch.distributed.init_process_group("gloo")
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


# Collecting doctests imports this file, which must change nothing.
if __name__ == "__main__":
    main()
