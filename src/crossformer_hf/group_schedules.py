"""The group size schedules of the original code, as data for `CrossFormerConfig.group_sizes`.

From `compute_group_size` in the original `models/crossformer.py`; section 4.1 of arXiv 2303.06908.
"""

import math


SMALLEST_GROUP = 4
THIRD_STAGE = 2  # the original treats this stage specially, however many there are


def linear(size: float, resolution: int, stage: int, layer: int) -> float:
    """Grow in proportion to depth."""
    return size


def linear_div(size: float, resolution: int, stage: int, layer: int) -> float:
    """As `linear`, but past half the map take half of it or, past three quarters and outside stage 3, all."""
    if size <= resolution // 2:
        return size
    return resolution if size > resolution * 3 / 4 or stage != THIRD_STAGE else resolution // 2


def alter(size: float, resolution: int, stage: int, layer: int) -> float:
    """As `linear`, but past half the map alternate between half and all of it in stage 3, else take all."""
    if size <= resolution // 2:
        return size
    return resolution if layer % 2 == 1 or stage != THIRD_STAGE else resolution // 2


GROWING = {"linear": linear, "linear_div": linear_div, "alter": alter}
SCHEDULES = (*GROWING, "7_14")


def group_schedule(
    name: str,
    image_size: int = 224,
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2),
    group_sizes: list[int] | tuple[int, ...] = (7, 7, 14, 7),
    patch_stride: int = 4,
) -> list[list[int]]:
    """Group size of every layer of every stage, in tokens, for one image size.

    Args:
        name: `linear`, `linear_div` or `alter`, where groups grow with depth from 4 tokens to the whole map, or
            `7_14`, where the first four layers of the third stage have half of its group size.
        image_size: Height and width of the images, in pixels.
        depths: Layers of each stage.
        group_sizes: Group size of each stage; only `7_14` reads it.
        patch_stride: Stride of the first embedding, in pixels.

    Raises:
        ValueError: No schedule has that name, or the image is too small for groups of 4 tokens.

    Example:
    ```python
    >>> from crossformer_hf import group_schedule

    >>> group_schedule("linear", image_size=224, depths=[2, 2, 6, 2])
    [[4, 9], [7, 9], [6, 7, 8, 9, 10, 11], [6, 7]]

    ```
    """
    if name == "7_14":
        stages = enumerate(zip(group_sizes, depths, strict=True))
        return [halve_early_layers(size, depth, stage) for stage, (size, depth) in stages]
    if name not in GROWING:
        raise ValueError(f"`name` is {name!r}, but it must be one of {', '.join(SCHEDULES)}.")
    resolution = image_size // patch_stride
    if resolution < SMALLEST_GROUP:
        raise ValueError(f"`image_size` is {image_size}, but it must be at least {SMALLEST_GROUP * patch_stride}.")
    return growing_schedule(GROWING[name], resolution, list(depths))


def halve_early_layers(size: int, depth: int, stage: int) -> list[int]:
    """Group sizes of one stage under `7_14`."""
    return [size // 2 if stage == THIRD_STAGE and layer < 4 else size for layer in range(depth)]


def growing_schedule(rule, resolution: int, depths: list[int]) -> list[list[int]]:
    """Group sizes that start at 4 tokens of the first map and grow by equal fractions of the map with every layer."""
    first = SMALLEST_GROUP / resolution
    # NumPy's `arange` steps by the difference of its first two values, which rounding sets a little off the true step.
    step = (first + (1 - first) / sum(depths)) - first
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    schedule = []
    for stage, (start, depth) in enumerate(zip(starts, depths, strict=True)):
        stage_resolution = resolution // 2**stage
        sizes = [
            rule(stage_resolution * (first + layer * step), stage_resolution, stage, layer)
            for layer in range(start, start + depth)
        ]
        schedule.append([max(SMALLEST_GROUP, math.ceil(size)) for size in sizes])
    return schedule
