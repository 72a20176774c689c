"""Weights and pixels that anyone can rebuild from a seed, and the parity cases made with them.

`data/parity` holds what the original authors' code computes in float64 on such weights and pixels, so that no weights
need to be kept. Each `NAME.json` describes a case; `NAME.npz` beside it holds the logits whole, the rest sampled.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from conversion.key_mapping import map_keys
from crossformer_hf import (
    CrossFormerBackbone,
    CrossFormerConfig,
    CrossFormerForImageClassification,
    group_schedule,
)


DATA = Path(__file__).parent / "data" / "parity"
OPTIONS = {
    "num_classes": "num_labels",
    "patch_size": "patch_sizes",
    "merge_size": "merge_sizes",
    "group_size": "group_sizes",
    "crs_interval": "intervals",
    "use_acl": "use_cooling_layer",
    "patch_norm": "use_patch_norm",
    "img_size": "image_size",
}
GROUPINGS = {"2021/dense": "fixed_interval", "2021/classification": "adaptive_interval"}


def tensor_for(key: str, shape: Iterable[int], seed: int = 0, division: type = np.float32) -> torch.Tensor:
    """Float32 tensor that depends on `seed`, `key` and `shape` alone; for the counter of a batch norm, an int64 of 0.

    Norm weights and running variances lie around 1, biases and running means around 0; matrices and kernels have
    variance 1 / fan_in. Inference cases were made with NumPy 1, which divides in float32, training cases with NumPy 2,
    whose `division` is in float64.
    """
    shape = tuple(shape)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    stream = int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:4], "little")
    noise = np.asarray(np.random.RandomState(stream).standard_normal(shape), dtype=np.float32)
    if len(shape) > 1:
        return torch.from_numpy((noise / division(math.sqrt(math.prod(shape[1:])))).astype(np.float32))
    tenth = np.float32(0.1) * noise
    return torch.from_numpy(1 + tenth if key.endswith(("weight", "running_var")) else tenth)


def image_for(shape: Iterable[int], seed: int = 0) -> torch.Tensor:
    """Standard normal float32 pixels (batch, channels, height, width)."""
    return torch.from_numpy(np.random.RandomState(1_000_003 + seed).standard_normal(tuple(shape)).astype(np.float32))


def sample(tensor: torch.Tensor, count: int = 2048) -> np.ndarray:
    """At most `count` values in row-major order, an odd step apart."""
    flat = tensor.detach().double().flatten()
    return flat[:: max(1, flat.numel() // count) | 1][:count].numpy()


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest expected value."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def read_case(name: str) -> dict:
    """Description of a case, as its JSON file gives it."""
    return json.loads((DATA / f"{name}.json").read_text())


def config_for(case: dict) -> CrossFormerConfig:
    """Our configuration for the arguments of the original's constructor."""
    arguments = {"num_classes": 1000, **case["arguments"]}
    schedule = arguments.pop("group_type", "constant")
    adaptive = arguments.pop("adaptive_interval", False)
    settings = {OPTIONS.get(name, name): value for name, value in arguments.items()}
    if isinstance(settings["group_sizes"], int):
        settings["group_sizes"] = [settings["group_sizes"]] * len(settings["depths"])
    if schedule != "constant":
        image_size = case["image_shape"][-1]
        settings["group_sizes"] = group_schedule(schedule, image_size, settings["depths"], settings["group_sizes"])
    grouping = GROUPINGS.get(case.get("code"), "adaptive_interval" if adaptive else "fixed_group")
    return CrossFormerConfig(**settings, grouping=grouping)


def model_for(case: dict, division: type = np.float32) -> nn.Module:
    """Our model with a case's weights, in eval mode: a backbone for dense cases, else a classifier."""
    is_dense = case.get("code", "").endswith("dense")
    model = (CrossFormerBackbone if is_dense else CrossFormerForImageClassification)(config_for(case))
    key_map = map_keys(key for key, _ in case["parameters"])
    assert not key_map.unexpected and not key_map.dropped
    weights = {
        key_map.mapped[key]: tensor_for(key, shape, case["weight_seed"], division) for key, shape in case["parameters"]
    }
    own = model.state_dict()
    prefix = "" if is_dense else "crossformer."
    weights = {key if key in own else prefix + key: tensor for key, tensor in weights.items()}
    if is_dense:  # the original's dense code keeps a final norm and a head that it never uses
        weights = {key: tensor for key, tensor in weights.items() if key.split(".")[0] in ("embeddings", "encoder")}
    model.load_state_dict(weights)
    return model.eval()
