"""Running the original authors' code out of a user's checkout of it, without the old libraries that it imports.

The checkout is the user's own choice and its code is run; the checkpoint is only read, by `conversion.checkpoint`.
"""

import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from conversion.command import ConversionError, explain
from conversion.key_mapping import map_keys
from conversion.porting import Weights, listed
from crossformer_hf import CrossFormerConfig, CrossFormerPreTrainedModel


CLASSIFIER = "models/crossformer.py"
DENSE_2021 = "models/crossformer_backbone.py"
DENSE_MAIN = "models/crossformer_backbone_det.py"
# What each file computes. The 2021 classifier fits its interval to the image.
GROUPINGS = {
    ("main", "classifier"): ("fixed_group", "adaptive_interval"),
    ("crossformer", "classifier"): ("adaptive_interval",),
    ("main", "backbone"): ("fixed_group", "adaptive_interval"),
    ("crossformer", "backbone"): ("fixed_interval",),
}


class Original:
    """The original model with a checkpoint's weights.

    Args:
        checkout: A checkout of the original repository, of its `main` or its 2021 branch, `crossformer`.
        config: Our configuration of the same model.
        weights: The checkpoint's.
        size: Height and width of the images, in pixels; the original's classifier is built for one size.
        dtype: What to compute in.

    Raises:
        ConversionError: This branch does not compute what `config` describes, or has no such weights.
    """

    def __init__(
        self, checkout: Path, config: CrossFormerConfig, weights: Weights, size: tuple[int, int], dtype: torch.dtype
    ):
        self.branch = branch_of(checkout)
        self.has_head = weights.has_head
        self.file = file_of(self.branch, weights.has_head)
        num_labels = weights.num_labels if weights.has_head else 0
        self.model = load_strictly(build(checkout, config, num_labels, size), weights).to(dtype).eval()

    @torch.no_grad()
    def outputs(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """`embeddings` and each stage's output, (batch, channels, height, width); a classifier's `logits` too.

        Raises:
            ConversionError: The code fails, as that of 2021 does where a side is no multiple of the group size.
        """
        kept: dict[str, torch.Tensor] = {}
        handles = [
            module.register_forward_hook(lambda _, __, output, name=name: kept.update({name: output}))
            for name, module in self._watched().items()
        ]
        try:
            with _quiet():
                logits = self.model(pixel_values)
        except (AssertionError, RuntimeError) as error:
            raise ConversionError(f"the original code fails at this size: {explain(error)[:200]}") from error
        finally:
            for handle in handles:
                handle.remove()
        maps = {name: as_feature_map(output, pixel_values) for name, output in kept.items()}
        return {**maps, "logits": logits} if self.has_head else maps

    def _watched(self) -> dict[str, nn.Module]:
        """The modules whose outputs are compared: a stage's last block, which comes before its downsampling."""
        stages = {f"stage{index + 1}": stage.blocks[-1] for index, stage in enumerate(self.model.layers)}
        return {"embeddings": self.model.patch_embed, **stages}


def build_like(
    ours: CrossFormerPreTrainedModel, checkout: Path, size: tuple[int, int], drop_path: type[nn.Module]
) -> nn.Module:
    """The original of a model of ours, with its weights, for more than inference: in training mode it trains.

    Args:
        ours: A classifier or backbone.
        checkout: A checkout of the original repository.
        size: Height and width of the images, in pixels.
        drop_path: Stochastic depth, a class made with its rate; the stand-in does not drop.

    Raises:
        ConversionError: This branch does not compute what `ours` does.
    """
    num_labels = ours.config.num_labels if hasattr(ours, "classifier") else 0
    model = build(checkout, ours.config, num_labels, size, drop_path)
    parameters = {name.removeprefix("crossformer."): parameter for name, parameter in ours.named_parameters()}
    names = map_keys(name for name, _ in model.named_parameters()).mapped
    return load_strictly(model, Weights({key: parameters[name] for key, name in names.items() if name in parameters}))


def build(
    checkout: Path,
    config: CrossFormerConfig,
    num_labels: int,
    size: tuple[int, int],
    drop_path: type[nn.Module] | None = None,
) -> nn.Module:
    """The original's classifier of `num_labels` classes, or its backbone where that is 0, with weights of its own.

    Args:
        checkout: A checkout of the original repository.
        config: Our configuration of the same model.
        num_labels: Classes; 0 for a backbone.
        size: Height and width of the images, in pixels.
        drop_path: Stochastic depth, a class made with its rate; unless given, nothing is dropped.

    Raises:
        ConversionError: This branch does not compute what `config` describes.
    """
    branch, kind = branch_of(checkout), "classifier" if num_labels else "backbone"
    check_computable(config, branch, kind, size)
    module = import_file(checkout / file_of(branch, bool(num_labels)))
    options = arguments(config, branch, kind, num_labels, size)
    if drop_path is not None:
        module.DropPath = drop_path
        options["drop_path_rate"] = config.drop_path_rate
    with redirect_stdout(StringIO()), _quiet():  # it prints its group sizes
        model = model_class(module, config)(**options)
    for name, layer in model.named_modules():
        if name.endswith("pos_proj"):  # its input is always made in float32
            layer.register_forward_pre_hook(lambda layer, offsets: offsets[0].to(layer.weight.dtype))
    return model


def file_of(branch: str, has_head: bool) -> str:
    """The file of a branch that has its classifier, or its backbone."""
    if has_head:
        return CLASSIFIER
    return DENSE_MAIN if branch == "main" else DENSE_2021


def branch_of(checkout: Path) -> str:
    """Which branch a checkout of the original repository is of, by its files: `main` or `crossformer`."""
    if (checkout / CLASSIFIER).is_file():
        if (checkout / DENSE_MAIN).is_file():
            return "main"
        if (checkout / DENSE_2021).is_file():
            return "crossformer"
    raise ConversionError(
        f"{checkout} is no checkout of the original code, since it lacks {CLASSIFIER} or the files beside it; "
        "run `git clone https://github.com/cheerss/CrossFormer`"
    )


def check_computable(config: CrossFormerConfig, branch: str, kind: str, size: tuple[int, int]) -> None:
    """Refuse what this branch's code cannot compute.

    Raises:
        ConversionError: It has another grouping, or cannot take that image.
    """
    if config.grouping not in GROUPINGS[branch, kind] and not (
        (branch, kind) == ("crossformer", "classifier") and intervals_fit(config, size)
    ):
        other = "main" if branch == "crossformer" else "crossformer"
        raise ConversionError(
            f"the {kind} of the original's branch `{branch}` does not compute the grouping `{config.grouping}` at "
            f"{size[0]} x {size[1]}; check out its branch `{other}`"
        )
    multiple = config.patch_sizes[0] * 2 ** (config.num_stages - 1)
    if any(side % multiple for side in size):
        raise ConversionError(f"the original takes multiples of {multiple} pixels only; give another --image_size")
    if kind == "classifier" and size[0] != size[1]:
        raise ConversionError("the original's classifier takes square images only; give another --image_size")


def intervals_fit(config: CrossFormerConfig, size: tuple[int, int]) -> bool:
    """Whether every interval is what `adaptive_interval` would choose, as at 224 for the released classifiers."""
    sides = [size[0] // config.patch_sizes[0] // 2**index for index in range(config.num_stages)]
    return config.grouping == "fixed_group" and all(
        side <= group_size or -(-side // group_size) == interval
        for side, group_sizes, interval in zip(sides, config.layer_group_sizes, config.intervals, strict=True)
        for group_size in group_sizes
    )


def model_class(module: ModuleType, config: CrossFormerConfig) -> type[nn.Module]:
    """The original's class, told the group size of each layer: its own argument has one per stage only."""
    original = module.CrossFormer
    if not hasattr(original, "compute_group_size"):  # the 2021 code
        return original
    return type("CrossFormer", (original,), {"compute_group_size": lambda self, *_, **__: config.layer_group_sizes})


def arguments(config: CrossFormerConfig, branch: str, kind: str, num_labels: int, size: tuple[int, int]) -> dict:
    """The original constructor's arguments for our configuration.

    Raises:
        ConversionError: The original has no such option.
    """
    per_stage = branch == "main" and kind == "classifier"
    if not per_stage and isinstance(config.mlp_ratio, list):
        raise ConversionError(f"the {kind} of the original's branch `{branch}` has one `mlp_ratio` for all stages")
    if branch == "crossformer" and any(isinstance(group_size, list) for group_size in config.group_sizes):
        raise ConversionError("the original's branch `crossformer` has one group size per stage; check out `main`")
    return {
        "img_size": size,
        "patch_size": config.patch_sizes,
        "in_chans": config.num_channels,
        "num_classes": num_labels,
        "embed_dim": config.embed_dim,
        "depths": config.depths,
        "num_heads": config.num_heads,
        "group_size": config.group_sizes,
        "crs_interval": config.intervals,
        "mlp_ratio": config.stage_mlp_ratios if per_stage else config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "qk_scale": config.qk_scale,
        "patch_norm": config.use_patch_norm,
        "merge_size": config.merge_sizes,
        "adaptive_interval": config.grouping == "adaptive_interval",
        "use_acl": config.use_cooling_layer,
    }


def load_strictly(model: nn.Module, weights: Weights) -> nn.Module:
    """Load the parameters, and no buffers: the original computes those for the size at hand.

    Raises:
        ConversionError: A parameter is missing, unexpected or of another shape.
    """
    parameters = {key: weights.tensors[key] for key in map_keys(weights.tensors).mapped}
    if not weights.has_head:
        parameters = {key: tensor for key, tensor in parameters.items() if not key.startswith("norm.")}
    own = dict(model.named_parameters())
    wrong = [key for key in own.keys() | parameters.keys() if not _agree(own.get(key), parameters.get(key))]
    if wrong:
        raise ConversionError(f"the original code with this configuration has other weights: {listed(sorted(wrong))}")
    model.load_state_dict(parameters, strict=False)
    return model


def _agree(own: torch.Tensor | None, given: torch.Tensor | None) -> bool:
    return own is not None and given is not None and own.shape == given.shape


def as_feature_map(output: torch.Tensor | tuple, pixel_values: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, channels), or such with the image's size beside it, to (batch, channels, height, width)."""
    tokens = output if isinstance(output, torch.Tensor) else output[0]
    height, width = pixel_values.shape[-2:]
    scale = round((height * width / tokens.shape[1]) ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (height // scale, width // scale))


# --- Importing it ---


def import_file(path: Path) -> ModuleType:
    """Import one file of the original code, with stand-ins for the libraries of its time."""
    spec = importlib.util.spec_from_file_location("original_crossformer", path)
    module = importlib.util.module_from_spec(spec)
    with _stand_ins():
        try:
            spec.loader.exec_module(module)
        except (ImportError, SyntaxError) as error:
            raise ConversionError(
                f"{path} cannot be imported: {error}; is it the original code, unchanged?"
            ) from error
    return module


class _DropPath(nn.Identity):
    """timm's, as it is in evaluation."""


def _unused(*_, **__):
    raise NotImplementedError("a stand-in for what only training needs")


# What an inference needs of each library, and the names of the rest, which the original imports all the same.
STAND_INS = {
    "timm.models.layers": {
        "DropPath": _DropPath,
        "to_2tuple": lambda value: tuple(value) if isinstance(value, list | tuple) else (value, value),
        "trunc_normal_": nn.init.trunc_normal_,
    },
    "mmdet.utils": {"get_root_logger": lambda: logging.getLogger("original_crossformer")},
    "mmseg.utils": {"get_root_logger": lambda: logging.getLogger("original_crossformer")},
    "mmcv.runner": {
        **dict.fromkeys(("load_checkpoint", "_load_checkpoint"), _unused),
        "BaseModule": nn.Module,
        "ModuleList": nn.ModuleList,
    },
    "mmcv.cnn": dict.fromkeys(("build_norm_layer", "constant_init", "trunc_normal_init"), _unused),
    "mmcv.cnn.bricks.transformer": dict.fromkeys(("FFN", "build_dropout"), _unused),
    "mmcv.cnn.utils.weight_init": {"trunc_normal_": nn.init.trunc_normal_},
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what today's torch says about the code of 2021."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Put the stand-ins, and empty packages above them, in `sys.modules` for a while."""
    modules: dict[str, ModuleType] = {}
    for name, content in STAND_INS.items():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            modules.setdefault(".".join(parts[:depth]), ModuleType(".".join(parts[:depth]))).__path__ = []
        vars(modules[name]).update(content)
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)
