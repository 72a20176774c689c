"""The command that ports an original checkpoint: read, rename, load strictly, save.

    python conversion/convert_crossformer.py CHECKPOINT --variant crossformer-s --output FOLDER

Nothing in the checkpoint is ever executed, and the folder appears whole or not at all.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path


if not __package__:  # run as a script: Python put this file's own folder on the path
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "src")]

from conversion.checkpoint import read_checkpoint
from conversion.command import CommandParser, ConversionError, explain, run_command
from conversion.download import download
from conversion.hub_folder import key_report, write_folder
from conversion.labels import class_names, default_names
from conversion.model_card import model_card
from conversion.output import check_output, new_folder
from conversion.porting import KeyReport, Weights, listed, port, sort_weights
from conversion.variants import VARIANTS, Variant, variant_config, variant_table
from crossformer_hf import CrossFormerConfig, CrossFormerPreTrainedModel


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 for what cannot be converted, 2 for a mistake or Ctrl-C."""
    return run_command(command_parser(), convert, argv)


def command_parser() -> CommandParser:
    """The arguments."""
    parser = CommandParser("convert_crossformer.py", description="Port an original CrossFormer checkpoint.")
    parser.add_argument("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="a file of the original code")
    architecture = parser.add_mutually_exclusive_group()
    architecture.add_argument(
        "--variant", choices=VARIANTS, metavar="NAME", help="which released checkpoint it is; --list names them"
    )
    architecture.add_argument(
        "--config", type=Path, metavar="CONFIG.json", help="a CrossFormerConfig, for any other checkpoint"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to write the model")
    parser.add_argument("--overwrite", action="store_true", help="replace a model in that folder; other files stay")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names: JSON, or text with one a line")
    parser.add_argument("--download", action="store_true", help="fetch the released checkpoint from Google Drive")
    parser.add_argument(
        "--backbone-only", action="store_true", help="of a whole detector or segmentor, port the backbone alone"
    )
    parser.add_argument("--allow-nonfinite", action="store_true", help="port weights that are NaN or infinite too")
    parser.add_argument("--list", action="store_true", help="list the released checkpoints and leave")
    return parser


def convert(args: argparse.Namespace) -> int:
    """Do what the arguments say."""
    if args.list:
        print(variant_table())
        return 0
    check_arguments(args)
    check_output(args.output, args.overwrite)
    variant = VARIANTS.get(args.variant)
    config = variant_config(variant) if variant else read_config(args.config)
    path = download(variant) if args.download else args.checkpoint
    weights = sort_weights(read_checkpoint(path).state_dict)
    check_kind(weights, variant, args.backbone_only)
    complete_config(config, weights, args.labels)
    model, report = port(weights, config, args.allow_nonfinite)
    content = key_report(model, path.name, args.variant, report)
    with new_folder(args.output, args.overwrite) as folder:
        write_folder(folder, model, content, model_card(model, variant))
    print(summary(model, report, args.output))
    warn_of_grouping(variant, weights)
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Require what belongs together.

    Raises:
        ConversionError: An argument is missing or one too many.
    """
    if args.output is None:
        raise ConversionError("--output is missing; say where to write the model")
    if args.variant is None and args.config is None:
        raise ConversionError("--variant or --config is missing; --list names the released checkpoints")
    if args.download and (args.variant is None or args.checkpoint is not None):
        raise ConversionError("--download needs --variant and no CHECKPOINT; leave one of them out")
    if not args.download and args.checkpoint is None:
        raise ConversionError("CHECKPOINT is missing; give a file, or --download")


def read_config(path: Path) -> CrossFormerConfig:
    """Read a `CrossFormerConfig` from JSON.

    Raises:
        ConversionError: It is no JSON object, has a field that no configuration has, or breaks a rule.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is no JSON: {explain(error)}; correct it") from error
    if not isinstance(fields, dict):
        raise ConversionError(f"{path} holds no JSON object; give the fields of a CrossFormerConfig")
    check_fields(path, fields)
    try:
        return CrossFormerConfig.from_dict(fields)
    except Exception as error:  # Transformers has many; each says which field breaks which rule
        raise ConversionError(f"{path} is no configuration: {explain(error)}") from error


def check_fields(path: Path, fields: dict) -> None:
    """Refuse an unknown field: Transformers would keep it without a word, and a default would stand in its place.

    Raises:
        ConversionError: There is one.
    """
    known = {*CrossFormerConfig().to_dict(), "auto_map", "num_labels", "out_features", "out_indices"}
    if fields.get("model_type", "crossformer") != "crossformer":
        raise ConversionError(f"{path} is of a model of type {fields['model_type']!r}; give a CrossFormerConfig")
    for name in fields.keys() - known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean `{close[0]}`?" if close else "remove it"
        raise ConversionError(f"{path} has the field `{name}`, which no CrossFormerConfig has; {hint}")


def check_kind(weights: Weights, variant: Variant | None, backbone_only: bool) -> None:
    """Require a checkpoint of the variant's task: its architecture may be the same with another grouping.

    Raises:
        ConversionError: It is of another kind, or a whole detector or segmentor.
    """
    if weights.parts and not backbone_only:
        raise ConversionError(
            f"the checkpoint is of a whole detector or segmentor, whose {listed(sorted(weights.parts))} cannot be "
            "ported yet; give --backbone-only to port its backbone and drop the rest"
        )
    if variant is None or variant.is_classifier:
        return
    if weights.has_head:
        raise ConversionError(
            f"the checkpoint is of a classifier, but {variant.name} is for {variant.task}, with another grouping; "
            f"give --variant {variant.preset}"
        )
    if weights.parts and weights.parts != variant.parts:
        raise ConversionError(
            f"the checkpoint has {listed(sorted(weights.parts))} beside its backbone, but {variant.name} has "
            f"{', '.join(sorted(variant.parts))}; give the variant that it is"
        )


def complete_config(config: CrossFormerConfig, weights: Weights, labels: Path | None) -> None:
    """Set what the checkpoint decides: the classes of a classifier, the feature maps of a backbone.

    Raises:
        ConversionError: There are names for another number of classes than the head has.
    """
    if not weights.has_head:
        if labels is not None:
            raise ConversionError("the checkpoint has no classes to name; leave out --labels")
        config.set_output_features_output_indices(out_features=config.stage_names[1:], out_indices=None)
        return
    names = declared_names(config, weights.num_labels)
    if names is None or labels is not None:
        names = class_names(weights.num_labels, labels)
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


def summary(model: CrossFormerPreTrainedModel, report: KeyReport, output: Path) -> str:
    """What was done, in a few lines."""
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    lines = [
        report.counts(),
        f"{type(model).__name__}, {millions:.1f} M parameters, grouping {model.config.grouping}",
        f"written to {output}; conversion_report.json there lists every key",
    ]
    if report.dropped:
        lines.insert(1, f"dropped: {listed(list(report.dropped))}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
