"""How fast this machine multiplies large matrices: the ceilings that a model's speed is compared with.

PyTorch may use one library for products and another for convolutions, so a convolution with a kernel of 1 x 1, which
is a product of matrices, can be the faster of the two.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F


PRODUCT, CONVOLUTION = "matrix product", "convolution"
SIDES = {"cpu": 1024, "cuda": 8192}


def matrix_products(dtype: torch.dtype, device: torch.device) -> tuple[dict[str, Callable[[], None]], int]:
    """Two ways to multiply two large square matrices, as calls, and the FLOPs of either.

    The values are small, so that half precision does not overflow, and random, since zeros draw less power.
    """
    side = SIDES.get(device.type, SIDES["cuda"])
    left, right = (torch.randn(side, side, device=device).mul_(side**-0.5).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    image, kernel = left.view(1, side, 1, side).permute(0, 3, 1, 2), right.t().contiguous()[:, :, None, None]
    ways = {PRODUCT: lambda: torch.mm(left, right, out=out), CONVOLUTION: lambda: F.conv2d(image, kernel)}
    return ways, 2 * side**3
