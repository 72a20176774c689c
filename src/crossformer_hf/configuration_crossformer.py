"""CrossFormer configuration: which architectures are legal, and the sizes that follow from them."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin


GROUPINGS = ("fixed_group", "fixed_interval", "adaptive_interval")
MERGE_STRIDE = 2
POSITIVE_FIELDS = (
    "num_channels",
    "embed_dim",
    "image_size",
    "depths",
    "num_heads",
    "intervals",
    "mlp_ratio",
    "fpn_hidden_size",
    "decoder_hidden_size",
    "max_detections",
)
PROBABILITIES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "classifier_dropout_prob",
    "score_threshold",
    "nms_threshold",
)


def to_lists(value):
    """`value` with every tuple in it made a list, so that a configuration equals its JSON round trip."""
    return [to_lists(item) for item in value] if isinstance(value, list | tuple) else value


def check(condition: bool, field: str, value, rule: str) -> None:
    """Raise a `ValueError` that names the field, its value and the rule, unless `condition` holds."""
    if not condition:
        raise ValueError(f"`{field}` is {value!r}, but {rule}.")


@strict
class CrossFormerConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Configuration of CrossFormer and CrossFormer++ models (arXiv 2108.00154 and 2303.06908).

    The defaults give CrossFormer-S. The number of stages is the length of `depths`; stage `i` has
    `embed_dim * 2**i` channels and works on a map `patch_sizes[0] * 2**i` times smaller than the image.

    Args:
        image_size: Height and width of the training images in pixels, an int where both are equal. The model takes
            any size; this one is only the default for preprocessing and for dummy inputs.
        num_channels: Channels of an image.
        patch_sizes: Kernel sizes, in pixels, of the first cross-scale embedding. The first is also its stride.
        merge_sizes: For each later stage, the kernel sizes of its cross-scale embedding, in tokens; its stride is 2.
        embed_dim: Channels of the first stage.
        depths: Layers of each stage.
        num_heads: Attention heads of each stage.
        group_sizes: Height and width of an attention group in tokens: for each stage an int, or a list of one int per
            layer of that stage (the progressive group sizes of CrossFormer++).
        intervals: For each stage, the distance in tokens between the members of a long distance group.
        grouping: How the token map is divided where its size is no multiple of the group size. A checkpoint is right
            only with the one it was trained with: `"fixed_group"` for the original `main` branch, `"fixed_interval"`
            for the released 2021 detection and segmentation checkpoints, `"adaptive_interval"` for models trained
            with the original flag of that name.
        use_cooling_layer: Whether an activation cooling layer follows every third layer of a stage but its last
            (CrossFormer++).
        use_patch_norm: Whether the first embedding ends with a layer norm.
        mlp_ratio: Hidden width of the MLP as a multiple of the layer's, a number or one per stage.
        qkv_bias: Whether the query, key and value projections have a bias.
        qk_scale: Factor on the query-key product; `None` is `head_dim ** -0.5`.
        hidden_act: Activation in the MLP.
        hidden_dropout_prob: Dropout after the embedding, the attention output and the MLP's two projections.
        attention_probs_dropout_prob: Dropout on the attention probabilities.
        drop_path_rate: Stochastic depth rate of the last layer; it grows linearly from 0 at the first.
        initializer_range: Standard deviation of the initial weights of linear layers.
        layer_norm_eps: Epsilon of every layer norm.
        fpn_hidden_size: Channels of the feature pyramid of a segmentor or detector.
        decoder_hidden_size: Channels of the Semantic FPN head.
        classifier_dropout_prob: Dropout, of whole channels, before the classifier of the Semantic FPN head.
        semantic_loss_ignore_index: Label of pixels that the loss of semantic segmentation leaves out.
        score_threshold: Lowest score of a detection.
        nms_threshold: Overlap, as intersection over union, above which the weaker of two detections of a class goes.
        max_detections: Most detections in an image.
        out_features: Names out of `stage_names` that a backbone returns; the last stage unless given.
        out_indices: The same as positions in `stage_names`.

    Example:
    ```python
    >>> from crossformer_hf import CrossFormerConfig, CrossFormerModel

    >>> config = CrossFormerConfig(depths=[1, 1, 8, 6], embed_dim=64, num_heads=[2, 4, 8, 16])
    >>> model = CrossFormerModel(config)
    >>> model.config.hidden_size
    512

    ```
    """

    model_type = "crossformer"
    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_stages"}

    image_size: int | list[int] | tuple[int, int] = 224
    num_channels: int = 3
    patch_sizes: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    merge_sizes: list[list[int]] | tuple[tuple[int, ...], ...] = ((2, 4), (2, 4), (2, 4))
    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    group_sizes: list[int | list[int]] | tuple[int | tuple[int, ...], ...] = (7, 7, 7, 7)
    intervals: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    grouping: str = "fixed_group"
    use_cooling_layer: bool = False
    use_patch_norm: bool = True
    mlp_ratio: float | int | list[float | int] | tuple[float | int, ...] = 4.0
    qkv_bias: bool = True
    qk_scale: float | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    fpn_hidden_size: int = 256
    decoder_hidden_size: int = 128
    classifier_dropout_prob: float | int = 0.1
    semantic_loss_ignore_index: int = 255
    score_threshold: float | int = 0.05
    nms_threshold: float | int = 0.5
    max_detections: int = 100
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        """Turn tuples into lists and set what follows from the fields: `num_stages`, `hidden_size`, `stage_names`."""
        for name in ("image_size", "patch_sizes", "merge_sizes", "depths", "num_heads", "group_sizes", "intervals"):
            setattr(self, name, to_lists(getattr(self, name)))
        self.mlp_ratio = to_lists(self.mlp_ratio)
        self.num_stages = len(self.depths)
        self.hidden_size = self.embed_dim * 2 ** max(self.num_stages - 1, 0)
        # A saved configuration holds these too; what follows from the fields goes before what was saved.
        for name in ("num_stages", "hidden_size", "stage_names"):
            kwargs.pop(name, None)
        self.stage_names = ["stem"] + [f"stage{index + 1}" for index in range(self.num_stages)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @property
    def stage_channels(self) -> list[int]:
        """Channels of each stage."""
        return [self.embed_dim * 2**index for index in range(self.num_stages)]

    @property
    def stage_mlp_ratios(self) -> list[float]:
        """MLP ratio of each stage."""
        return self.mlp_ratio if isinstance(self.mlp_ratio, list) else [self.mlp_ratio] * self.num_stages

    @property
    def layer_group_sizes(self) -> list[list[int]]:
        """Group size, in tokens, of each layer of each stage."""
        return [
            [size] * depth if isinstance(size, int) else size
            for size, depth in zip(self.group_sizes, self.depths, strict=True)
        ]

    def validate_crossformer(self):
        """Check every rule; later ones rely on earlier ones."""
        self.check_stages()
        self.check_positive_sizes()
        self.check_group_sizes()
        self.check_kernels()
        self.check_channels()
        self.check_grouping()
        self.check_rates()

    def check_stages(self):
        """Require at least one stage and one entry per stage in every per-stage field."""
        check(self.num_stages >= 1, "depths", self.depths, "a model needs at least one stage")
        for field in ("num_heads", "group_sizes", "intervals", "mlp_ratio"):
            value = getattr(self, field)
            if isinstance(value, list):
                rule = f"it must have one entry per stage: {self.num_stages}, the length of `depths`"
                check(len(value) == self.num_stages, field, value, rule)
        rule = f"it must have one entry per stage after the first: {self.num_stages - 1}, one less than `depths` has"
        check(len(self.merge_sizes) == self.num_stages - 1, "merge_sizes", self.merge_sizes, rule)

    def check_positive_sizes(self):
        """Require positive sizes, and a pair where `image_size` is a list."""
        for field in POSITIVE_FIELDS:
            value = getattr(self, field)
            values = value if isinstance(value, list) else [value]
            check(all(number > 0 for number in values), field, value, "it must be positive")
        if isinstance(self.image_size, list):
            check(len(self.image_size) == 2, "image_size", self.image_size, "it must be an int or (height, width)")

    def check_group_sizes(self):
        """Require a positive group size for every layer."""
        for stage, (size, depth) in enumerate(zip(self.group_sizes, self.depths, strict=True)):
            sizes = size if isinstance(size, list) else [size] * depth
            rule = f"entry {stage} must be an int or a list of one int per layer of that stage: {depth}"
            check(len(sizes) == depth, "group_sizes", self.group_sizes, rule)
            check(all(number > 0 for number in sizes), "group_sizes", self.group_sizes, "sizes must be positive")

    def check_kernels(self):
        """Require kernels that sample patches with the same centres: not under their stride, an even amount over."""
        check(len(self.patch_sizes) > 0, "patch_sizes", self.patch_sizes, "it must have at least one kernel size")
        embeddings = [("patch_sizes", self.patch_sizes, self.patch_sizes[0])]
        embeddings += [(f"merge_sizes[{i}]", kernels, MERGE_STRIDE) for i, kernels in enumerate(self.merge_sizes)]
        for field, kernels, stride in embeddings:
            check(len(kernels) > 0, field, kernels, "it must have at least one kernel size")
            check(stride > 0, field, kernels, "kernel sizes must be positive")
            rule = f"no kernel may be smaller than the stride, {stride}"
            check(all(kernel >= stride for kernel in kernels), field, kernels, rule)
            rule = f"every kernel must exceed the stride, {stride}, by an even number, so that patches share centres"
            check(all((kernel - stride) % 2 == 0 for kernel in kernels), field, kernels, rule)

    def check_channels(self):
        """Require channels that the heads, the position bias and the embeddings' kernels can share out."""
        rule = "it must be at least 16, since the position bias is computed in a sixteenth of the channels"
        check(self.embed_dim >= 16, "embed_dim", self.embed_dim, rule)
        for stage, (channels, heads) in enumerate(zip(self.stage_channels, self.num_heads, strict=True)):
            rule = f"entry {stage} must divide the {channels} channels of stage {stage + 1}"
            check(channels % heads == 0, "num_heads", self.num_heads, rule)
        for channels, kernels in zip(self.stage_channels, [self.patch_sizes, *self.merge_sizes], strict=True):
            parts = 2 ** (len(kernels) - 1)
            rule = (
                f"{channels} channels cannot be split among {len(kernels)} kernels: they must be a multiple of {parts}"
            )
            check(channels % parts == 0, "embed_dim", self.embed_dim, rule)

    def check_grouping(self):
        """Require a known grouping."""
        check(self.grouping in GROUPINGS, "grouping", self.grouping, f"it must be one of {', '.join(GROUPINGS)}")

    def check_rates(self):
        """Require probabilities below 1 and positive numeric constants."""
        for field in PROBABILITIES:
            value = getattr(self, field)
            check(0 <= value < 1, field, value, "it must be at least 0 and less than 1")
        check(self.layer_norm_eps > 0, "layer_norm_eps", self.layer_norm_eps, "it must be positive")
        check(self.initializer_range >= 0, "initializer_range", self.initializer_range, "it must not be negative")
        scale = self.qk_scale
        check(scale is None or scale > 0, "qk_scale", scale, "it must be positive, or None for head_dim ** -0.5")


__all__ = ["CrossFormerConfig"]
