"""From an original's weights to a model of ours: choose the class, rename, compare, load strictly."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from conversion.checkpoint import CheckpointError, nonfinite_keys, read_checkpoint
from conversion.command import ConversionError, explain
from conversion.key_mapping import map_keys
from conversion.variants import VARIANTS, variant_config
from crossformer_hf import (
    CrossFormerBackbone,
    CrossFormerConfig,
    CrossFormerForImageClassification,
    CrossFormerPreTrainedModel,
)


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
        outside: Names of the others: those of a detector's or segmentor's neck and heads.
        prefix: What was taken off the names in `tensors`.
    """

    tensors: dict[str, torch.Tensor]
    outside: list[str] = field(default_factory=list)
    prefix: str = ""

    @property
    def has_head(self) -> bool:
        """Whether they classify."""
        return any(key.startswith("head.") for key in self.tensors)

    @property
    def num_labels(self) -> int:
        """Classes of the head; 0 if there is none."""
        rows = (tensor.shape[0] for key, tensor in self.tensors.items() if key.startswith("head.") and tensor.ndim > 0)
        return next(rows, 0)

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
    return Weights(backbone, [key for key in state_dict if not key.startswith(BACKBONE_PREFIX)], BACKBONE_PREFIX)


def empty_model(config: CrossFormerConfig, has_head: bool) -> CrossFormerPreTrainedModel:
    """A model whose weights have shapes, but take no memory yet: a classifier, or else a backbone.

    Raises:
        ConversionError: No model has that configuration.
    """
    try:
        with torch.device("meta"):
            return CrossFormerForImageClassification(config) if has_head else CrossFormerBackbone(config)
    except ValueError as error:
        raise ConversionError(explain(error)) from error


def our_names(weights: Weights) -> tuple[dict[str, str], KeyReport]:
    """Names of the weights in our model by their original names, and a report of the keys so far."""
    key_map = map_keys(weights.tensors)
    final_norm = [] if weights.has_head else [key for key in key_map.mapped if key.startswith("norm.")]
    report = KeyReport(unexpected=key_map.unexpected)
    report.dropped.update(dict.fromkeys(key_map.dropped, RECOMPUTED))
    report.dropped.update(dict.fromkeys(final_norm, FINAL_NORM))
    report.dropped.update(dict.fromkeys(weights.outside, OUTSIDE))
    model_prefix = "crossformer." if weights.has_head else ""
    names = {
        key: name if name.startswith("classifier.") else model_prefix + name
        for key, name in key_map.mapped.items()
        if key not in final_norm
    }
    return names, report


def port(
    weights: Weights, config: CrossFormerConfig, allow_nonfinite: bool = False
) -> tuple[CrossFormerPreTrainedModel, KeyReport]:
    """Build the model that `config` describes, with exactly these weights in float32.

    Raises:
        ConversionError: A weight is missing, unexpected, of another shape, infinite or no number.
    """
    model = empty_model(config, weights.has_head)
    expected = {name: parameter.shape for name, parameter in model.state_dict().items()}
    names, report = our_names(weights)
    missing = dict.fromkeys(expected)
    for key, name in names.items():
        if name in missing:
            report.mapped[key] = name
            del missing[name]
        else:
            report.unexpected.append(key)
    report.missing.extend(missing)
    _check_architecture(report, weights, expected)
    # A copy each: the file may be mapped into memory, and may hold one tensor under two names.
    state_dict = {name: weights.tensors[key].to(torch.float32, copy=True) for key, name in report.mapped.items()}
    if not allow_nonfinite:
        _check_finite(state_dict, report)
    model.load_state_dict(state_dict, strict=True, assign=True)
    return model.eval(), report


def listed(keys: list[str]) -> str:
    """The first keys, which the file chose, on one line of bounded length, and how many more there are."""
    more = len(keys) - SHOWN
    shown = ", ".join(ascii(key)[1:-1][:LONGEST_SHOWN] for key in keys[:SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def fitting_variants(weights: Weights) -> list[str]:
    """Names of the released checkpoints whose weights have exactly these names and shapes."""
    shapes = {name: weights.tensors[key].shape for key, name in our_names(weights)[0].items()}
    candidates = [variant for variant in VARIANTS.values() if variant.is_classifier or not weights.has_head]
    if weights.parts:
        candidates = [variant for variant in candidates if variant.parts == weights.parts]
    presets = {variant.preset: variant for variant in candidates}
    fitting = {preset for preset, variant in presets.items() if _shapes_of(variant, weights) == shapes}
    return [variant.name for variant in candidates if variant.preset in fitting]


def _shapes_of(variant, weights: Weights) -> dict[str, torch.Size]:
    config = variant_config(variant)
    if weights.has_head:
        config.num_labels = weights.num_labels
    return {name: parameter.shape for name, parameter in empty_model(config, weights.has_head).state_dict().items()}


def _advice(weights: Weights) -> str:
    fitting = fitting_variants(weights)
    if fitting:
        return f"it fits --variant {' or '.join(fitting)}"
    return "it fits no released variant, so give its architecture with --config"


def _check_architecture(report: KeyReport, weights: Weights, expected: Mapping[str, torch.Size]) -> None:
    reshaped = [
        f"{key} {tuple(weights.tensors[key].shape)} instead of {tuple(expected[name])}"
        for key, name in report.mapped.items()
        if weights.tensors[key].shape != expected[name]
    ]
    kinds = {"missing": report.missing, "unexpected": report.unexpected, "of another shape": reshaped}
    found = [f"{len(keys)} {kind} ({listed(keys)})" for kind, keys in kinds.items() if keys]
    if found:
        raise ConversionError(f"the weights do not fit this architecture: {', '.join(found)}; {_advice(weights)}")


def _check_finite(state_dict: Mapping[str, torch.Tensor], report: KeyReport) -> None:
    originals = {name: key for key, name in report.mapped.items()}
    bad = [originals[name] for name in nonfinite_keys(state_dict)]
    if bad:
        raise ConversionError(
            f"{len(bad)} weights hold NaN or infinity: {listed(bad)}; the training that wrote them diverged, "
            "so take an earlier checkpoint, or convert it all the same with --allow-nonfinite"
        )
