"""Porting one checkpoint file: read, rename, load strictly, save."""

import argparse
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from conversion.command import ConversionError
from conversion.config_file import read_config
from conversion.download import download
from conversion.hub_folder import key_report, write_folder
from conversion.labels import class_names, default_names
from conversion.model_card import model_card
from conversion.output import check_output, new_folder
from conversion.porting import KeyReport, Weights, listed, natural_target, port, read_weights
from conversion.targets import BACKBONE, Target, crossformer_config
from conversion.variants import VARIANTS, Variant, variant_config
from crossformer_hf import CrossFormerConfig


def convert(args: argparse.Namespace) -> None:
    """Do what the arguments of `convert_crossformer.py` say.

    Raises:
        ConversionError: The file is not ported, for whatever reason; nothing was written.
    """
    check_output(args.output, args.overwrite)
    variant = VARIANTS.get(args.variant)
    config = variant_config(variant) if variant else read_config(args.config)
    path = download(variant) if args.download else args.checkpoint
    weights = read_weights(path)
    target = choose_target(weights, variant, args.backbone_only)
    names = names_of_classes(config, weights, target, args.labels)
    config = target.configure(config, weights)
    set_names(config, names)
    model, report = port(weights, target, config, args.allow_nonfinite)
    content = key_report(model, path.name, args.variant, report)
    with new_folder(args.output, args.overwrite) as folder:
        write_folder(folder, model, target, content, model_card(model, target, variant))
    print(summary(model, report, args.output))
    warn_of_grouping(variant, weights)


def choose_target(weights: Weights, variant: Variant | None, backbone_only: bool) -> Target:
    """What to port the checkpoint to; it must be one of the variant's kind.

    Its architecture may be that of another variant with another grouping, so nothing else would tell.

    Raises:
        ConversionError: It is of another kind, or has parts that cannot be ported.
    """
    target = natural_target(weights)
    if variant is not None:
        check_kind(weights, variant, backbone_only)
    if backbone_only and weights.parts:
        return BACKBONE
    if weights.parts and not target.parts:
        raise ConversionError(
            f"the checkpoint is of another kind of detector or segmentor, whose {listed(sorted(weights.parts))} "
            "cannot be ported; give --backbone-only to port its backbone and drop the rest"
        )
    return target


def check_kind(weights: Weights, variant: Variant, backbone_only: bool) -> None:
    """Require a checkpoint of the variant's task, but for a backbone alone.

    Raises:
        ConversionError: It is of another kind.
    """
    if weights.has_head and not variant.is_classifier:
        raise ConversionError(
            f"the checkpoint is of a classifier, but {variant.name} is for {variant.task}, with another grouping; "
            f"give --variant {variant.preset}"
        )
    if weights.parts and variant.is_classifier and not backbone_only:
        raise ConversionError(
            f"the checkpoint has {listed(sorted(weights.parts))} beside its backbone, but {variant.name} is a "
            "classifier; give the variant that it is, or --backbone-only to drop them"
        )
    parts = natural_target(weights).parts or weights.parts
    if parts and not variant.is_classifier and parts != variant.parts:
        raise ConversionError(
            f"the checkpoint has {listed(sorted(weights.parts))} beside its backbone, but {variant.name} has "
            f"{', '.join(sorted(variant.parts))}; give the variant that it is"
        )


def names_of_classes(config: CrossFormerConfig, weights: Weights, target: Target, labels: Path | None) -> list[str]:
    """Names of the target's classes: from the file `labels`, the configuration or the data set; none of a backbone.

    Raises:
        ConversionError: There are names for another number of classes than the head has.
    """
    if not target.has_classes:
        if labels is not None:
            raise ConversionError("the checkpoint has no classes to name; leave out --labels")
        return []
    names = declared_names(config, weights.num_labels)
    if names is None or labels is not None:
        return class_names(weights.num_labels, target.task, labels)
    return names


def set_names(config: PreTrainedConfig, names: list[str]) -> None:
    """Write the names of the classes, if there are any, into a configuration."""
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}


def declared_names(config: CrossFormerConfig, num_labels: int) -> list[str] | None:
    """The class names in the configuration, if it has any that are not the default.

    Raises:
        ConversionError: It has another number of them than the head.
    """
    names = list(config.id2label.values())
    if names == default_names(CrossFormerConfig().num_labels):
        return None
    if len(names) != num_labels:
        raise ConversionError(
            f"the configuration has {len(names)} labels, but the checkpoint's head has {num_labels}; "
            "correct `id2label` or `num_labels`"
        )
    return None if names == default_names(num_labels) else names


def warn_of_grouping(variant: Variant | None, weights: Weights) -> None:
    """Say so if a detector or segmentor was converted as a classifier: its grouping may be another."""
    twins = [v.name for v in VARIANTS.values() if variant and v.preset == variant.preset and v.parts == weights.parts]
    if weights.parts and variant and variant.is_classifier and twins:
        print(
            f"note: {variant.name} has grouping {variant.grouping}; if this is the released {twins[0]}, convert it so"
        )


def summary(model: PreTrainedModel, report: KeyReport, output: Path) -> str:
    """What was done, in a few lines."""
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    lines = [
        report.counts(),
        f"{type(model).__name__}, {millions:.1f} M parameters, grouping {crossformer_config(model.config).grouping}",
        f"written to {output}; conversion_report.json there lists every key",
    ]
    if report.dropped:
        lines.insert(1, f"dropped: {listed(list(report.dropped))}")
    return "\n".join(lines)
