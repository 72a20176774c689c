"""Comparing a converted model with the original code, output by output."""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, UperNetConfig, UperNetForSemanticSegmentation
from transformers.utils import logging

from conversion.command import ConversionError, explain
from conversion.hub_folder import IMAGENET_MEAN, IMAGENET_STD, image_size
from conversion.original_code import Original
from conversion.porting import read_weights
from crossformer_hf import CrossFormerBackbone, CrossFormerForImageClassification, CrossFormerPreTrainedModel


def verify(args: argparse.Namespace) -> int:
    """Do what the arguments of `verify_crossformer.py` say; return 0 if the two agree, else 1."""
    weights = read_weights(args.checkpoint)
    dtype = getattr(torch, args.dtype)
    model = load_converted(args.folder, weights.has_head).to(dtype)
    size = chosen_size(args.image_size, model)
    pixel_values = pixels(args, model.config.num_channels, size).to(dtype)
    original = Original(args.original, model.config, weights, size, dtype)
    differences = compare(converted_outputs(model, pixel_values), original.outputs(pixel_values))
    print(f"{original.file} of branch {original.branch}, {size[0]} x {size[1]} pixels, {args.dtype}")
    if weights.parts:
        print(f"the backbone alone: {', '.join(sorted(weights.parts))} are other libraries' code, which is not run")
    return report(differences, args.tolerance)


def load_converted(folder: Path, has_head: bool) -> CrossFormerPreTrainedModel:
    """Load what is compared of the converted model: a classifier, or the backbone.

    Raises:
        ConversionError: There is none.
    """
    if not (folder / "config.json").is_file():
        raise ConversionError(f"{folder} holds no converted model; give the --output of convert_crossformer.py")
    logging.disable_progress_bar()
    try:
        if has_head:
            return CrossFormerForImageClassification.from_pretrained(folder).eval()
        if AutoConfig.from_pretrained(folder).model_type == UperNetConfig.model_type:
            return UperNetForSemanticSegmentation.from_pretrained(folder).backbone.eval()
        return CrossFormerBackbone.from_pretrained(folder).eval()
    except Exception as error:  # whatever is wrong with the folder, converting anew is the way out
        raise ConversionError(f"{folder} cannot be loaded: {explain(error)}; convert the checkpoint again") from error


def chosen_size(sides: list[int] | None, model: CrossFormerPreTrainedModel) -> tuple[int, int]:
    """Height and width in pixels: those given, or else those that the model was trained at.

    Raises:
        ConversionError: There are more than two numbers, or one is not positive.
    """
    if sides is None:
        return image_size(model.config)
    if len(sides) > 2 or min(sides) < 1:
        raise ConversionError(f"--image_size is {sides}, but it must be one side or height and width, in pixels")
    return sides[0], sides[-1]


def pixels(args: argparse.Namespace, channels: int, size: tuple[int, int]) -> torch.Tensor:
    """Normalised pixel values (1, channels, height, width): the image's, or standard normal ones."""
    if args.image is None:
        values = np.random.RandomState(args.seed).standard_normal((1, channels, *size))
        return torch.from_numpy(values.astype(np.float32))
    with Image.open(args.image) as image:
        resized = image.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)
    values = (np.asarray(resized, dtype=np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None]


@torch.no_grad()
def converted_outputs(model: CrossFormerPreTrainedModel, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """`embeddings` and one feature map per stage, (batch, channels, height, width), and a classifier's `logits`."""
    outputs = model(pixel_values, output_hidden_states=True)
    names = ["embeddings", *model.config.stage_names[1:]]
    maps = dict(zip(names, outputs.hidden_states, strict=True))
    return {**maps, "logits": outputs.logits} if "logits" in outputs else maps


def compare(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, tuple[float, float]]:
    """For each output, the largest difference, and that as a part of the original's largest value."""
    differences = {}
    for name, expected in theirs.items():
        difference = (ours[name] - expected).abs().max().item()
        differences[name] = difference, difference / expected.abs().max().item()
    return differences


def report(differences: dict[str, tuple[float, float]], tolerance: float) -> int:
    """Print the differences; return 0 if all are within `tolerance`, else 1."""
    print(f"{'output':<12}{'absolute':>10}{'relative':>10}")
    for name, (absolute, relative) in differences.items():
        print(f"{name:<12}{absolute:>10.1e}{relative:>10.1e}")
    agree = all(relative <= tolerance for _, relative in differences.values())  # not so for NaN
    print(f"{'all' if agree else 'NOT all'} within {tolerance:g}, relative to the largest value of each output")
    return 0 if agree else 1
