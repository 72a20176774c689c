"""Detectors and segmentors of Transformers around a pretrained CrossFormer.

Transformers builds the backbone of such a model from its configuration and loads no weights into it; this does.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_crossformer import CrossFormerConfig
from .modeling_crossformer import CrossFormerBackbone


MAX_LISTED = 5
MAX_CAUSE = 300
WANTED = (
    "it must be the folder of a CrossFormer classifier, segmentor or backbone, or the name of such a repository on "
    "the Hub; conversion/convert_crossformer.py makes such a folder of an original checkpoint"
)
AROUND_ONE = (
    " This one is built around a CrossFormer: load it with its own class, save the `CrossFormerBackbone` that is in "
    "its `modules()` with `save_pretrained`, and give that folder."
)


def channels(backbone: CrossFormerBackbone) -> list[int]:
    """Channels of each map that the backbone returns."""
    return backbone.channels


def strides(backbone: CrossFormerBackbone) -> list[int]:
    """Pixels of the image between the tokens of each map that the backbone returns."""
    # The stem, position 0 in `stage_names`, has the stride of the first stage.
    return [backbone.config.patch_sizes[0] * 2 ** max(index - 1, 0) for index in backbone.out_indices]


def finest_stride(backbone: CrossFormerBackbone) -> int:
    """Stride, in pixels, of the largest map that the backbone returns."""
    return strides(backbone)[0]


@dataclass(frozen=True)
class Consumer:
    """What a kind of model wants of its backbone.

    Args:
        num_maps: How many of the last stages' maps it takes; `None` for all.
        min_maps: It cannot do with fewer.
        fields: Fields of its configuration that follow from the backbone, and how.
    """

    num_maps: int | None = None
    min_maps: int = 1
    fields: dict[str, Callable[[CrossFormerBackbone], Any]] = field(default_factory=dict)

    def out_features(self, stages: list[str]) -> list[str]:
        """Names of the maps that it takes, out of those of all stages, fine to coarse."""
        return stages if self.num_maps is None else stages[-self.num_maps :]


# The hybrid encoder of RT-DETR and its successors. It merges maps that must halve exactly: for strides 8, 16 and 32,
# image sides must be multiples of 32 once they are rounded up to multiples of 8.
HYBRID_ENCODER = Consumer(num_maps=3, min_maps=3, fields={"encoder_in_channels": channels, "feat_strides": strides})
# By `model_type`. The detectors of the first line use the last map alone; segmentation on top of them uses all.
CONSUMERS = {
    **dict.fromkeys(["detr", "conditional_detr", "dab-detr", "table-transformer"], Consumer()),
    "deformable_detr": Consumer(num_maps=3),
    **dict.fromkeys(["rt_detr", "rt_detr_v2", "d_fine"], HYBRID_ENCODER),
    "maskformer": Consumer(),
    "mask2former": Consumer(min_maps=3, fields={"feature_strides": strides, "common_stride": finest_stride}),
    # Its auxiliary head reads the third map.
    "upernet": Consumer(min_maps=3),
}


def from_pretrained_backbone(
    model_class: type[PreTrainedModel],
    backbone: str | os.PathLike,
    *,
    out_features: list[str] | None = None,
    backbone_kwargs: dict[str, Any] | None = None,
    **config_fields,
) -> PreTrainedModel:
    """Build a model of Transformers, a detector for instance, around a pretrained CrossFormer backbone.

    Everything but the backbone has the random initial weights of Transformers, and the model is in training mode, as
    after `AutoModel.from_config`. Saved, it loads with `model_class.from_pretrained` where this package is imported.
    MaskFormer and Mask2Former log that they do not list this backbone as supported; they work with it nevertheless.

    Args:
        model_class: The class of the model, such as `DetrForObjectDetection` or `UperNetForSemanticSegmentation`: any
            whose configuration has a `backbone_config`.
        backbone: Folder, or name on the Hub, of a CrossFormer classifier, segmentor or backbone.
        out_features: Stages whose maps the model takes, out of `stage1`, `stage2`, …; those that the kind of model is
            made for (`CONSUMERS`) unless given.
        backbone_kwargs: More arguments of `CrossFormerBackbone.from_pretrained`: `revision`, `token`, `subfolder` and
            the like, and fields of its configuration, such as `drop_path_rate`.
        config_fields: Fields of the model's configuration, such as `num_labels`, `dtype` (that of all weights, float32
            unless given) or `attn_implementation`. They go before those that follow from the backbone.

    Returns:
        The model.

    Raises:
        ValueError: The model takes no such backbone, `backbone` is no CrossFormer or cannot be read, or its weights do
            not fill the backbone; the message lists what is missing, unexpected or of another shape.

    Example:
    ```python
    >>> import tempfile
    >>> import torch
    >>> from transformers import UperNetForSemanticSegmentation
    >>> from crossformer_hf import CrossFormerConfig, CrossFormerForImageClassification, from_pretrained_backbone

    >>> sizes = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     CrossFormerForImageClassification(CrossFormerConfig(**sizes)).save_pretrained(folder)
    ...     model = from_pretrained_backbone(UperNetForSemanticSegmentation, folder, num_labels=3, hidden_size=32)
    >>> model.eval()(torch.zeros(1, 3, 61, 100)).logits.shape
    torch.Size([1, 3, 61, 100])

    ```
    """
    check_model_class(model_class, out_features, config_fields)
    pretrained = load_backbone(os.fspath(backbone), backbone_kwargs or {})
    consumer = CONSUMERS.get(model_class.config_class.model_type, Consumer())
    stages = pretrained.stage_names[1:]
    pretrained.out_features = consumer.out_features(stages) if out_features is None else list(out_features)
    check_num_maps(model_class, pretrained, consumer)
    derived = {name: derive(pretrained) for name, derive in consumer.fields.items()}
    config = model_class.config_class(**{**derived, **config_fields, "backbone_config": pretrained.config})
    # What `AutoModel.from_config` calls: unlike the constructor, it heeds `dtype`.
    model = model_class._from_config(config)
    find_backbone(model).load_state_dict(pretrained.state_dict())
    return model


def check_model_class(
    model_class: type[PreTrainedModel], out_features: list[str] | None, config_fields: dict[str, Any]
) -> None:
    """Raise a `ValueError` unless the model takes a backbone, and it is known which of its maps."""
    name = getattr(model_class, "__name__", repr(model_class))
    config_class = getattr(model_class, "config_class", None)
    if "backbone_config" not in getattr(config_class, "__dataclass_fields__", {}):
        raise ValueError(
            f"`model_class` is {name}, but it must be a model of Transformers whose configuration has a "
            "`backbone_config`; give a class such as DetrForObjectDetection."
        )
    if "backbone_config" in config_fields:
        raise ValueError(
            "`backbone_config` is given, but it must be that of `backbone`; give what should differ as "
            "`backbone_kwargs`."
        )
    if out_features is None and config_class.model_type not in CONSUMERS:
        raise ValueError(
            f"`out_features` is None, but for {name} it must be given, since which maps to take is known for "
            f"{', '.join(CONSUMERS)} only; list the stages whose maps the model should get."
        )


def check_num_maps(model_class: type[PreTrainedModel], backbone: CrossFormerBackbone, consumer: Consumer) -> None:
    """Raise a `ValueError` if the model cannot do with so few maps."""
    if len(backbone.out_features) < consumer.min_maps:
        raise ValueError(
            f"`out_features` is {backbone.out_features}, but {model_class.__name__} needs at least "
            f"{consumer.min_maps} maps; give more out of {backbone.stage_names[1:]} or a backbone with more stages."
        )


def load_backbone(source: str, options: dict[str, Any]) -> CrossFormerBackbone:
    """Load a backbone from a folder or the Hub; a `ValueError` says why it is none, or lists the weights at fault."""
    check_model_type(source, options)
    options = {**options, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        backbone, info = CrossFormerBackbone.from_pretrained(source, **options)
    except Exception as error:  # other people's files can fail in any way
        raise refusal(source, f"which cannot be loaded ({cause(error)})") from error
    check_account(source, info)
    # The code beside a converted checkpoint does not come along into the model's folder.
    vars(backbone.config).pop("auto_map", None)
    return backbone


def check_account(source: str, info: dict[str, Any]) -> None:
    """Raise a `ValueError` unless every weight has its place; loading has left out those of the known heads."""
    misses = {
        "missing": info["missing_keys"],
        "unexpected": info["unexpected_keys"],
        "of another shape": [key for key, *_ in info["mismatched_keys"]],
    }
    found = "; ".join(f"{len(keys)} {kind}: {listed(keys)}" for kind, keys in misses.items() if keys)
    if found:
        raise refusal(source, f"whose weights are not those of the backbone that its config.json describes ({found})")


def check_model_type(source: str, options: dict[str, Any]) -> None:
    """Raise a `ValueError` unless there is a configuration, of a CrossFormer."""
    if os.path.isfile(source):
        raise refusal(source, "a file")
    try:
        config = dict(PreTrainedConfig.get_config_dict(source, **options)[0])
    except Exception as error:  # other people's files can fail in any way
        raise refusal(source, f"where no configuration can be read ({cause(error)})") from error
    model_type, inner = config.get("model_type"), config.get("backbone_config")
    if model_type is None:
        raise refusal(source, "which has no config.json that says its `model_type`")
    if model_type != CrossFormerConfig.model_type:
        is_around_one = isinstance(inner, dict) and inner.get("model_type") == CrossFormerConfig.model_type
        raise refusal(source, f"whose `model_type` is {model_type!r}", AROUND_ONE if is_around_one else "")


def refusal(source: str, found: str, way_out: str = "") -> ValueError:
    """The error that says what was found at `source`, what is wanted and how to get it."""
    return ValueError(f"`backbone` is {source!r}, {found}, but {WANTED}.{way_out}")


def cause(error: Exception) -> str:
    """What an error says, in one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:MAX_CAUSE]


def listed(keys: Iterable[str]) -> str:
    """The first few of the keys, in order, and how many more there are."""
    names = sorted(keys)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def find_backbone(model: PreTrainedModel) -> CrossFormerBackbone:
    """The one CrossFormer backbone in a model; a `ValueError` if there is none, or several."""
    backbones = [module for module in model.modules() if isinstance(module, CrossFormerBackbone)]
    if len(backbones) != 1:
        raise ValueError(
            f"`model_class` is {type(model).__name__}, which has {len(backbones)} CrossFormer backbones, but it must "
            "have one; give the class of a whole model, such as DetrForObjectDetection."
        )
    return backbones[0]


__all__ = ["from_pretrained_backbone"]
