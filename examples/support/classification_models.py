"""Classifiers to fine-tune and to evaluate: loading, frozen stages, low-rank adapters, learning rates by depth."""

from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from timm.optim import param_groups_layer_decay
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

import crossformer_hf  # noqa: F401  (registers CrossFormer with the Auto classes)

from .errors import InputError
from .pretrained import labels_of, load, read_config


CLASSIFIER = "ForImageClassification"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTED_LAYERS = ["qkv", "attention.projection", "fc1", "fc2"]
# As timm groups the parameters of its own models: what matches nothing, the last norm and the head, comes last.
LAYERS = {
    "stem": r".*crossformer\.embeddings",
    "layers": [
        (r".*\.stages\.(\d+)\.downsampling", (0,)),  # With the first layer of its stage.
        (r".*\.stages\.(\d+)\.layers\.(\d+)", None),
    ],
}


def load_classifier(path: str) -> PreTrainedModel:
    """Trained classifier, in evaluation mode; adapters that `finetune_classification.py` saved are merged.

    Raises:
        InputError: It is another kind of model or cannot be loaded.
    """
    if (Path(path) / ADAPTER_CONFIG).exists():
        return load_adapted(path).merge_and_unload().eval()
    config = read_config(path)
    architecture = (config.architectures or [config.model_type])[0]
    if not architecture.endswith(CLASSIFIER):
        raise InputError(
            f"{path} holds a {architecture}, but a model for image classification is needed: give the folder of one, "
            "such as finetune_classification.py makes"
        )
    return load(AutoModelForImageClassification.from_pretrained, path).eval()


def load_adapted(path: str) -> PeftModel:
    """Classifier with the adapters of a folder, which names the pretrained model and holds its new configuration."""
    adapter = load(LoraConfig.from_pretrained, path)
    config = read_config(path)
    base = pretrained_classifier(adapter.base_model_name_or_path, list(config.id2label.values()))
    return load(lambda folder: PeftModel.from_pretrained(base, folder), path)


def load_processor(path: str):
    """Image processor saved with a model, which resizes with PIL as the original code does.

    Raises:
        InputError: There is none.
    """
    return load(AutoImageProcessor.from_pretrained, path, backend="pil")


def pretrained_classifier(path: str, names: list[str], **fields) -> PreTrainedModel:
    """Classifier with pretrained weights; the head is new unless it fits the classes.

    Args:
        path: Folder or Hub name of a model.
        names: Names of the classes.
        fields: Fields of the configuration.

    Raises:
        InputError: It cannot be loaded.
    """
    return load(
        AutoModelForImageClassification.from_pretrained,
        path,
        ignore_mismatched_sizes=True,
        **labels_of(names),
        **fields,
    )


def freeze_stages(model: PreTrainedModel, count: int) -> None:
    """Keep the embeddings and the first `count` stages as they are.

    Raises:
        InputError: The model has fewer stages, or is no CrossFormer.
    """
    if model.config.model_type != "crossformer":
        raise InputError(
            f"--freeze_stages is {count}, but {model.name_or_path} holds a model of type {model.config.model_type}, "
            "whose stages are not known: leave it out"
        )
    stages = model.crossformer.encoder.stages
    if not 0 < count <= len(stages):
        raise InputError(f"--freeze_stages is {count}, but there are {len(stages)} stages: give 1 to {len(stages)}")
    for module in (model.crossformer.embeddings, *stages[:count]):
        module.requires_grad_(False)


def add_adapters(model: PreTrainedModel, rank: int, alpha: int, dropout: float) -> PeftModel:
    """Low-rank adapters (LoRA, arXiv 2106.09685) in every attention and MLP; besides them only the head is trained.

    Raises:
        InputError: The model has no such layers.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=ADAPTED_LAYERS,
        modules_to_save=["classifier"],
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(
            f"--lora_rank is {rank}, but {model.name_or_path} has no place for adapters ({error}): give a CrossFormer"
        ) from error


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, object]]:
    """Groups for an optimizer: each layer has `layer_decay` times the learning rate of the next; vectors do not decay.

    Args:
        model: Only its parameters that are trained are in the groups.
        learning_rate: That of the head.
        weight_decay: Of matrices and kernels.
        layer_decay: 1 for the same learning rate everywhere.
    """
    model.group_matcher = lambda coarse: LAYERS  # What timm asks its own models.
    try:
        groups = param_groups_layer_decay(model, weight_decay, layer_decay=layer_decay)
    finally:
        del model.group_matcher
    return [{**group, "lr": learning_rate * group["lr_scale"]} for group in groups]
