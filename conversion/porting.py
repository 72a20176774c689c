"""From an original's weights to a model of ours: choose the class, rename, compare, load strictly."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from conversion.checkpoint import CheckpointError, nonfinite_keys, read_checkpoint
from conversion.command import ConversionError, explain
from conversion.key_mapping import map_keys
from conversion.targets import BACKBONE, CLASSIFIER, TARGETS, Target
from conversion.variants import VARIANTS, variant_config


BACKBONE_PREFIX = "backbone."
SHOWN = 3
LONGEST_SHOWN = 150

RECOMPUTED = "a buffer that is computed anew"
OUTSIDE = "outside the backbone"
FINAL_NORM = "the final norm, which a backbone does not have"


@dataclass(frozen=True)
class Weights:
    """An original's weights, sorted.

    Attributes:
        tensors: Those of the CrossFormer, under the original's names, without the `backbone.` of mmdetection.
        outside: The others, under the original's names: a detector's or segmentor's neck and heads.
        prefix: What was taken off the names in `tensors`.
    """

    tensors: dict[str, torch.Tensor]
    outside: Mapping[str, torch.Tensor] = field(default_factory=dict)
    prefix: str = ""

    def __getitem__(self, key: str) -> torch.Tensor:
        """One of them."""
        return self.tensors[key] if key in self.tensors else self.outside[key]

    @property
    def has_head(self) -> bool:
        """Whether they are those of a classifier."""
        return any(key.startswith("head.") for key in self.tensors)

    @property
    def num_labels(self) -> int:
        """Classes of a classifier, segmentor or detector; 0 if there are none."""
        if not self.has_head:
            return self.classifier_shape("decode_head")[0] or self._detected_classes()
        rows = (tensor.shape[0] for key, tensor in self.tensors.items() if key.startswith("head.") and tensor.ndim > 0)
        return next(rows, 0)

    def classifier_shape(self, part: str) -> tuple[int, int]:
        """Classes and input channels of a segmentor's head; 0 and 0 if there is no such head."""
        weight = self.outside.get(f"{part}.conv_seg.weight")
        return tuple(weight.shape[:2]) if weight is not None and weight.ndim == 4 else (0, 0)

    def _detected_classes(self) -> int:
        """Classes of a detector: RetinaNet has a score for each of 9 anchors, Mask R-CNN one for the background."""
        counts = {
            "bbox_head.retina_cls.bias": lambda rows: rows // 9,
            "roi_head.bbox_head.fc_cls.bias": lambda rows: rows - 1,
        }
        found = (count(self.outside[key].numel()) for key, count in counts.items() if key in self.outside)
        return max(next(found, 0), 0)

    @property
    def parts(self) -> frozenset[str]:
        """What is beside the backbone, such as `neck` and `bbox_head`."""
        return frozenset(key.split(".")[0] for key in self.outside)


@dataclass(frozen=True)
class KeyReport:
    """What became of every key: the original's names, and ours for those that are missing."""

    mapped: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def counts(self) -> str:
        """How many keys there are of each kind."""
        return (
            f"{len(self.mapped)} keys mapped, {len(self.dropped)} dropped on purpose, "
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected"
        )


def read_weights(path: Path) -> Weights:
    """Read and sort the weights in a checkpoint file, of which nothing is executed.

    Raises:
        ConversionError: The file is refused.
    """
    try:
        return sort_weights(read_checkpoint(path).state_dict)
    except CheckpointError as error:
        raise ConversionError(str(error)) from error


def sort_weights(state_dict: Mapping[str, torch.Tensor]) -> Weights:
    """Tell the backbone of a detector or segmentor from its neck and heads; anything else is taken as it is."""
    backbone = {
        key.removeprefix(BACKBONE_PREFIX): tensor
        for key, tensor in state_dict.items()
        if key.startswith(BACKBONE_PREFIX)
    }
    if not backbone:
        return Weights(dict(state_dict))
    outside = {key: tensor for key, tensor in state_dict.items() if not key.startswith(BACKBONE_PREFIX)}
    return Weights(backbone, outside, BACKBONE_PREFIX)


def natural_target(weights: Weights) -> Target:
    """What the weights are of: a backbone if they have parts that no target has."""
    if weights.has_head:
        return CLASSIFIER
    return next((target for target in TARGETS if target.parts and target.fits(weights.parts)), BACKBONE)


def empty_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model whose weights have shapes, but take no memory yet.

    Raises:
        ConversionError: No model has that configuration.
    """
    try:
        with torch.device("meta"):
            return model_class(config)
    except ValueError as error:
        raise ConversionError(explain(error)) from error


def our_names(weights: Weights, target: Target) -> tuple[dict[str, str], KeyReport]:
    """Names of the weights in the target by their original names, and a report of the keys so far."""
    backbone = map_keys(weights.tensors)
    heads = map_keys(weights.outside if target.parts else (), target.renames)
    report = KeyReport(unexpected=backbone.unexpected + heads.unexpected)
    report.dropped.update(dict.fromkeys(backbone.dropped, RECOMPUTED))
    names = {
        key: name if name.startswith("classifier.") else target.prefix + name for key, name in backbone.mapped.items()
    }
    if not target.has_final_norm:
        final_norm = [key for key in names if key.startswith("norm.")]
        report.dropped.update(dict.fromkeys(final_norm, FINAL_NORM))
        names = {key: name for key, name in names.items() if key not in final_norm}
    if not target.parts:
        report.dropped.update(dict.fromkeys(weights.outside, OUTSIDE))
    return {**names, **heads.mapped}, report


def port(
    weights: Weights, target: Target, config: PreTrainedConfig, allow_nonfinite: bool = False
) -> tuple[PreTrainedModel, KeyReport]:
    """Build the target that `config` describes, with exactly these weights in float32.

    Raises:
        ConversionError: A weight is missing, unexpected, of another shape, infinite or no number.
    """
    model = empty_model(target.model_class, config)
    expected = model.state_dict()
    names, report = our_names(weights, target)
    missing = dict.fromkeys(expected)
    for key, name in names.items():
        if name in missing:
            report.mapped[key] = name
            del missing[name]
        else:
            report.unexpected.append(key)
    report.missing.extend(missing)
    _check_architecture(report, weights, target, expected)
    # A copy each: the file may be mapped into memory, and may hold one tensor under two names.
    state_dict = {name: weights[key].to(expected[name].dtype, copy=True) for key, name in report.mapped.items()}
    if not allow_nonfinite:
        _check_finite(state_dict, report)
    model.load_state_dict(state_dict, strict=True, assign=True)
    return model.eval(), report


def listed(keys: list[str]) -> str:
    """The first keys, which the file chose, on one line of bounded length, and how many more there are."""
    more = len(keys) - SHOWN
    shown = ", ".join(ascii(key)[1:-1][:LONGEST_SHOWN] for key in keys[:SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def fitting_variants(weights: Weights, target: Target) -> list[str]:
    """Names of the variants for which the target has exactly these names and shapes."""
    shapes = {name: weights[key].shape for key, name in our_names(weights, target)[0].items()}
    candidates = [variant for variant in VARIANTS.values() if variant.is_classifier or not weights.has_head]
    if weights.parts:
        parts = target.parts or weights.parts
        candidates = [variant for variant in candidates if variant.parts == parts]
    presets = {variant.preset: variant for variant in candidates}
    fitting = {preset for preset, variant in presets.items() if _shapes_of(variant, weights, target) == shapes}
    return [variant.name for variant in candidates if variant.preset in fitting]


def _shapes_of(variant, weights: Weights, target: Target) -> dict[str, torch.Size]:
    config = target.configure(variant_config(variant), weights)
    if target.has_classes and weights.num_labels:
        config.num_labels = weights.num_labels
    return {name: tensor.shape for name, tensor in empty_model(target.model_class, config).state_dict().items()}


def _advice(weights: Weights, target: Target) -> str:
    fitting = fitting_variants(weights, target)
    if fitting:
        return f"it fits --variant {' or '.join(fitting)}"
    return "it fits no released variant, so give its architecture with --config"


def _check_architecture(
    report: KeyReport, weights: Weights, target: Target, expected: Mapping[str, torch.Tensor]
) -> None:
    reshaped = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(expected[name].shape)}"
        for key, name in report.mapped.items()
        if weights[key].shape != expected[name].shape
    ]
    kinds = {"missing": report.missing, "unexpected": report.unexpected, "of another shape": reshaped}
    found = [f"{len(keys)} {kind} ({listed(keys)})" for kind, keys in kinds.items() if keys]
    if found:
        raise ConversionError(
            f"the weights do not fit this architecture: {', '.join(found)}; {_advice(weights, target)}"
        )


def _check_finite(state_dict: Mapping[str, torch.Tensor], report: KeyReport) -> None:
    originals = {name: key for key, name in report.mapped.items()}
    bad = [originals[name] for name in nonfinite_keys(state_dict)]
    if bad:
        raise ConversionError(
            f"{len(bad)} weights hold NaN or infinity: {listed(bad)}; the training that wrote them diverged, "
            "so take an earlier checkpoint, or convert it all the same with --allow-nonfinite"
        )
