"""Classifiers with random weights: presets, saved configurations, and any other architecture of Transformers."""

import json
from dataclasses import dataclass, field

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel

from crossformer_hf import PRESETS, preset_config

from .errors import InputError
from .pretrained import labels_of


@dataclass
class ArchitectureArguments:
    """What to train; one of the first three."""

    preset: str | None = field(
        default=None, metadata={"help": f"A CrossFormer of this package: {', '.join(PRESETS)}."}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a configuration; its weights are not loaded."}
    )
    model_type: str | None = field(
        default=None, metadata={"help": "Another architecture of Transformers with its defaults, such as swin."}
    )
    config_overrides: str = field(
        default="{}",
        metadata={"help": "Fields of the configuration that differ, as JSON, such as '{\"intervals\": [1, 1, 1]}'."},
    )

    def __post_init__(self):
        """Refuse two architectures."""
        given = [f"--{name}" for name in ("preset", "config_name", "model_type") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given, but there is one model to train: give one of them")


def build_classifier(architecture: ArchitectureArguments, names: list[str]) -> PreTrainedModel:
    """Classifier with random weights.

    Args:
        architecture: Which.
        names: Names of the classes.

    Raises:
        InputError: There is no such architecture, or an override is illegal.
    """
    try:
        overrides = json.loads(architecture.config_overrides)
        config = read_config(architecture, {**overrides, **labels_of(names)})
        known = {*type(config)().to_dict(), *config.attribute_map}
        unknown = sorted(name for name in overrides if name not in known)
        if unknown:
            raise ValueError(f"a configuration of type {config.model_type} has no field {', '.join(unknown)}")
        return AutoModelForImageClassification.from_config(config)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        chosen = architecture.preset or architecture.config_name or architecture.model_type
        reason = " ".join(str(error).split())
        raise InputError(
            f"{chosen} with --config_overrides {architecture.config_overrides} gives no classifier ({reason[:300]}): "
            f"give --preset and one of {', '.join(PRESETS)}, --config_name or --model_type, and legal overrides"
        ) from error


def read_config(architecture: ArchitectureArguments, overrides: dict) -> PreTrainedConfig:
    """Configuration with the overrides on top."""
    if architecture.config_name:
        return AutoConfig.from_pretrained(architecture.config_name, **overrides)
    if architecture.model_type:
        return AutoConfig.for_model(architecture.model_type, **overrides)
    return preset_config(architecture.preset, **overrides)
