"""Named architectures: the eight released ones, and some for small images."""

from .configuration_crossformer import CrossFormerConfig


# CrossFormer++ differs in its progressive group sizes and its cooling layers (arXiv 2303.06908).
PLUS_PLUS = {"group_sizes": [4, 4, 14, 7], "intervals": [4, 2, 1, 1], "use_cooling_layer": True}
# 16 x 16, 8 x 8 and 4 x 4 tokens: a fourth stage would have nothing left to group. Narrow layers learn faster from
# larger weights than the released architectures'.
SMALL_IMAGES = {
    "merge_sizes": [[2, 4], [2, 4]],
    "depths": [2, 2, 6],
    "group_sizes": [4, 4, 4],
    "intervals": [4, 2, 1],
    "initializer_range": 0.05,
}
SMALL_IMAGES_PLUS_PLUS = {**SMALL_IMAGES, "group_sizes": [4, 8, 4], "use_cooling_layer": True}
PIXELS_32 = {"image_size": 32, "patch_sizes": [2, 4, 8, 16], "embed_dim": 64, "num_heads": [2, 4, 8]}
PIXELS_64 = {"image_size": 64, "patch_sizes": [4, 8, 16, 32], "embed_dim": 96, "num_heads": [3, 6, 12]}

PRESETS = {
    "crossformer-t": {"embed_dim": 64, "depths": [1, 1, 8, 6], "num_heads": [2, 4, 8, 16], "drop_path_rate": 0.1},
    "crossformer-s": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "drop_path_rate": 0.2},
    "crossformer-b": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "drop_path_rate": 0.3},
    "crossformer-l": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "drop_path_rate": 0.5},
    "crossformer-pp-s": {
        **PLUS_PLUS,
        "embed_dim": 64,
        "depths": [2, 2, 18, 2],
        "num_heads": [2, 4, 8, 16],
        "drop_path_rate": 0.2,
    },
    "crossformer-pp-b": {
        **PLUS_PLUS,
        "embed_dim": 96,
        "depths": [2, 2, 18, 2],
        "num_heads": [3, 6, 12, 24],
        "drop_path_rate": 0.3,
    },
    "crossformer-pp-l": {
        **PLUS_PLUS,
        "embed_dim": 128,
        "depths": [2, 2, 18, 2],
        "num_heads": [4, 8, 16, 32],
        "drop_path_rate": 0.5,
    },
    "crossformer-pp-h": {
        **PLUS_PLUS,
        "embed_dim": 128,
        "depths": [6, 6, 18, 2],
        "num_heads": [4, 8, 16, 32],
        "drop_path_rate": 0.5,
    },
    "crossformer-32px": {**SMALL_IMAGES, **PIXELS_32},
    "crossformer-64px": {**SMALL_IMAGES, **PIXELS_64},
    "crossformer-pp-32px": {**SMALL_IMAGES_PLUS_PLUS, **PIXELS_32},
    "crossformer-pp-64px": {**SMALL_IMAGES_PLUS_PLUS, **PIXELS_64},
}


def preset_config(name: str, **overrides) -> CrossFormerConfig:
    """Configuration of a named architecture, with `overrides` such as `num_labels=10` on top.

    Raises:
        ValueError: No architecture has that name, or an override is illegal.

    Example:
    ```python
    >>> from crossformer_hf import preset_config

    >>> preset_config("crossformer-pp-s", num_labels=10).group_sizes
    [4, 4, 14, 7]

    ```
    """
    if name not in PRESETS:
        raise ValueError(f"`name` is {name!r}, but it must be one of {', '.join(PRESETS)}.")
    return CrossFormerConfig(**{**PRESETS[name], **overrides})
