"""Sizes of images in training and testing, as mmsegmentation computes them."""

import math


SIZE_DIVISOR = 32


def fit_size(height: int, width: int, longest_edge: float, shortest_edge: float) -> tuple[int, int]:
    """Height and width, in pixels, of an image made as large as fits both edges; the proportions stay."""
    scale = min(longest_edge / max(height, width), shortest_edge / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def round_up(height: int, width: int) -> tuple[int, int]:
    """Height and width as the next multiples of 32 pixels."""
    return math.ceil(height / SIZE_DIVISOR) * SIZE_DIVISOR, math.ceil(width / SIZE_DIVISOR) * SIZE_DIVISOR
