"""The models that can be measured, with random weights: nothing is downloaded."""

import torch
from torch import nn
from transformers import (
    ConvNextBackbone,
    ConvNextConfig,
    ConvNextForImageClassification,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
)

from benchmarks.cases import Case
from benchmarks.errors import BenchmarkError
from benchmarks.original import build_original
from crossformer_hf import CrossFormerBackbone, CrossFormerForImageClassification, CrossFormerPreTrainedModel
from crossformer_hf.presets import PRESETS, preset_config


NUM_LABELS = 1000  # ImageNet-1k
STAGES = [f"stage{number}" for number in (1, 2, 3, 4)]
# As published for ImageNet-1k at 224 pixels: Swin in arXiv 2103.14030, ConvNeXt in arXiv 2201.03545.
SWIN = {
    "swin-t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "drop_path_rate": 0.2},
    "swin-s": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "drop_path_rate": 0.3},
    "swin-b": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "drop_path_rate": 0.5},
}
CONVNEXT = {
    "convnext-t": {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3], "drop_path_rate": 0.1},
    "convnext-s": {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 27, 3], "drop_path_rate": 0.4},
    "convnext-b": {"hidden_sizes": [128, 256, 512, 1024], "depths": [3, 3, 27, 3], "drop_path_rate": 0.5},
}
# timm's names and the same stochastic depth; any other name of timm does as well.
TIMM = {
    "swin-t": "swin_tiny_patch4_window7_224",
    "swin-s": "swin_small_patch4_window7_224",
    "swin-b": "swin_base_patch4_window7_224",
    "convnext-t": "convnext_tiny",
    "convnext-s": "convnext_small",
    "convnext-b": "convnext_base",
}
DROP_PATH_RATES = {name: options["drop_path_rate"] for name, options in (SWIN | CONVNEXT).items()}


def known_models() -> dict[str, list[str]]:
    """Names of the models by implementation."""
    ours = list(PRESETS)
    return {"ours": ours, "original": ours, "transformers": [*SWIN, *CONVNEXT], "timm": [*TIMM]}


def check_model(case: Case) -> None:
    """Refuse a model that is not there.

    Raises:
        BenchmarkError: No model of that implementation has that name, or its grouping cannot be chosen.
    """
    names = known_models()[case.implementation]
    if case.model in names or (case.implementation == "timm" and timm_library().is_model(case.model)):
        return
    others = {"ours": ", or with its library, as transformers:swin-t", "timm": ", or any of timm.list_models()"}
    more = others.get(case.implementation, "")
    raise BenchmarkError(
        f"{case.implementation}:{case.model} is no model, but it must be one of {', '.join(names)}{more}"
    )


def build_model(case: Case, seed: int) -> nn.Module:
    """The model of a case in float32 on the CPU, in training mode if the case says so.

    Models of one name have the same weights, ours and the original's.

    Raises:
        BenchmarkError: The model cannot take images of that size, or needs what is not there.
    """
    check_model(case)
    torch.manual_seed(seed)
    builders = {"ours": build_ours, "transformers": build_transformers, "timm": build_timm}
    if case.implementation == "original":
        model = build_original(case.checkouts, build_ours(case), case.size)
    else:
        model = builders[case.implementation](case)
    return model.train(case.mode == "training")


def our_config(case: Case):
    """The configuration of a CrossFormer, ours or the original's."""
    options = {"num_labels": NUM_LABELS} | ({"grouping": case.grouping} if case.grouping else {})
    config = preset_config(case.model, image_size=list(case.size), **options)
    config.out_features = config.stage_names[1:]
    return config


def build_ours(case: Case) -> CrossFormerPreTrainedModel:
    """Our CrossFormer."""
    model_class = CrossFormerForImageClassification if case.task == "classify" else CrossFormerBackbone
    return model_class(our_config(case))


def build_transformers(case: Case) -> nn.Module:
    """Swin or ConvNeXt of Transformers."""
    options = {"image_size": list(case.size), "num_labels": NUM_LABELS, "out_features": STAGES}
    if case.model in SWIN:
        config = SwinConfig(**options, **SWIN[case.model])
        return SwinForImageClassification(config) if case.task == "classify" else SwinBackbone(config)
    config = ConvNextConfig(**options, **CONVNEXT[case.model])
    return ConvNextForImageClassification(config) if case.task == "classify" else ConvNextBackbone(config)


def build_timm(case: Case) -> nn.Module:
    """A model of timm, told the size if its kind needs to know.

    Raises:
        BenchmarkError: timm cannot build it for that size and task.
    """
    name = TIMM.get(case.model, case.model)
    options = {"drop_path_rate": DROP_PATH_RATES[case.model]} if case.model in DROP_PATH_RATES else {}
    options |= {"features_only": True} if case.task == "backbone" else {"num_classes": NUM_LABELS}
    create = timm_library().create_model
    try:
        try:
            return create(name, pretrained=False, img_size=case.size, **options)
        except TypeError:  # convolutions do not care
            return create(name, pretrained=False, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise BenchmarkError(f"timm:{case.model} cannot be built for {case.setting}: {error}") from error


def timm_library():
    """The library timm.

    Raises:
        BenchmarkError: It is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise BenchmarkError("timm is not installed, but timm: asks for it: pip install timm") from error
    return timm
