"""How fast this machine multiplies large matrices: the ceiling that a model's speed is compared with."""

from collections.abc import Callable

import torch


SIDES = {"cpu": 1024, "cuda": 8192}


def matrix_product(dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], None], float]:
    """A product of two large square matrices, as a call, and its FLOPs.

    Its values are small, so that half precision does not overflow, and random, since zeros draw less power.
    """
    side = SIDES.get(device.type, SIDES["cuda"])
    left, right = (torch.randn(side, side, device=device).mul_(side**-0.5).to(dtype) for _ in range(2))
    out = torch.empty_like(left)

    def run() -> None:
        torch.mm(left, right, out=out)

    return run, 2 * side**3
