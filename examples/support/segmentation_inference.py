"""Segmenting whole images, at one size or averaged over several and their mirror images, as mmsegmentation tests."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import PreTrainedModel

from .errors import InputError
from .image_tensors import to_tensor
from .segmentation_transforms import FitAndAlign


ORIGINAL_EDGES = (2048, 512)


class WholeImageSegmentation:
    """Model and preprocessing that give the class of each pixel of an image of any size.

    Args:
        model: Segmentor in evaluation mode.
        processor: The image processor saved with it, for its size, mean and standard deviation.
        scales: The image is segmented at each of these multiples of the processor's size, and the probabilities are
            averaged.
        flip: Whether its mirror image is segmented too, at each scale.
    """

    def __init__(self, model: PreTrainedModel, processor, scales: Sequence[float] = (1.0,), flip: bool = False):
        self.model, self.flip = model, flip
        longest_edge, shortest_edge = edges_of(processor)
        self.fits = [FitAndAlign(int(longest_edge * scale), int(shortest_edge * scale)) for scale in scales]
        self.normalize = v2.Compose(
            [
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(processor.image_mean, processor.image_std),
            ]
        )

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Class of each pixel (height, width), int64, of an RGB image."""
        return self.probabilities(image).argmax(dim=0).cpu().numpy()

    @torch.inference_mode()
    def probabilities(self, image: Image.Image) -> torch.Tensor:
        """Probability of each class at each pixel (num_labels, height, width), averaged over all views."""
        total, count = 0, 0
        for view in self.views(image):
            total, count = total + self.segment(view, image), count + 1
            if self.flip:
                total, count = total + self.segment(view.flip(-1), image, flipped=True), count + 1
        return total / count

    def views(self, image: Image.Image) -> Iterator[torch.Tensor]:
        """The image at each scale, normalised: (1, 3, rows, columns)."""
        pixels = to_tensor(image)
        for fit in self.fits:
            yield self.normalize(fit(pixels)).as_subclass(torch.Tensor)[None].to(self.model.device, self.model.dtype)

    def segment(self, view: torch.Tensor, image: Image.Image, flipped: bool = False) -> torch.Tensor:
        """Probabilities (num_labels, height, width) that one view gives, at the size of the image."""
        logits = self.model(pixel_values=view).logits.float()
        logits = F.interpolate(logits, size=view.shape[-2:], mode="bilinear", align_corners=False)
        size = (image.height, image.width)
        probabilities = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).softmax(dim=1)[0]
        return probabilities.flip(-1) if flipped else probabilities


def edges_of(processor) -> tuple[int, int]:
    """Longest and shortest edge, in pixels, that the processor makes images fit; the original ones if it does not say.

    A processor with a height and a width keeps the shorter as the shortest edge.
    """
    size = dict(processor.size)
    if size.get("height") and size.get("width"):
        shortest = min(size["height"], size["width"])
        return max(ORIGINAL_EDGES[0], shortest), shortest
    shortest = size.get("shortest_edge") or ORIGINAL_EDGES[1]
    return size.get("longest_edge") or 4 * shortest, shortest


def check_scales(scales: Sequence[float]) -> None:
    """Raise an `InputError` unless all scales are positive."""
    wrong = next((scale for scale in scales if not 0 < scale < math.inf), None)
    if wrong is not None:
        raise InputError(f"--scales has {wrong}, but a scale multiplies the size of images: give positive numbers")
