"""Images as tensors, and padding."""

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors


def to_tensor(image: Image.Image) -> tv_tensors.Image:
    """RGB image as (3, height, width), uint8."""
    return tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())


def pad_to(image: torch.Tensor, height: int, width: int, fill: int) -> torch.Tensor:
    """Pad (..., rows, columns) at the right and bottom."""
    return torch.nn.functional.pad(image, [0, width - image.shape[-1], 0, height - image.shape[-2]], value=fill)
