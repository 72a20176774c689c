"""What a converted folder holds, so that Transformers loads it with or without this package."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import logging

import crossformer_hf
from conversion.labels import ADE20K_CLASSES
from conversion.porting import KeyReport
from conversion.targets import Target, crossformer_config
from crossformer_hf import CrossFormerConfig


CODE_FILES = (
    "configuration_crossformer.py",
    "modeling_crossformer.py",
    "modeling_crossformer_detection.py",
    "boxes_crossformer.py",
    "linear_crossformer.py",
    "image_processing_crossformer.py",
)
AUTO_MAP = {
    "AutoConfig": "configuration_crossformer.CrossFormerConfig",
    "AutoModel": "modeling_crossformer.CrossFormerModel",
    "AutoModelForImageClassification": "modeling_crossformer.CrossFormerForImageClassification",
    "AutoModelForSemanticSegmentation": "modeling_crossformer.CrossFormerForSemanticSegmentation",
    "AutoModelForObjectDetection": "modeling_crossformer_detection.CrossFormerForObjectDetection",
    "AutoModelForInstanceSegmentation": "modeling_crossformer_detection.CrossFormerForInstanceSegmentation",
    "AutoBackbone": "modeling_crossformer.CrossFormerBackbone",
}
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
BILINEAR, BICUBIC = 2, 3


def write_folder(folder: Path, model: PreTrainedModel, target: Target, report: dict, card: str) -> None:
    """Write weights, configuration, image processor, code, the report of the keys and the model card."""
    if target.brings_code:
        model.config.auto_map = AUTO_MAP
    with _without_progress_bar():
        model.save_pretrained(folder)
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # which safetensors keeps to its owner
    for name in CODE_FILES if target.brings_code else ():
        shutil.copyfile(Path(crossformer_hf.__file__).parent / name, folder / name)
    write_json(folder / "preprocessor_config.json", image_processor(model, target))
    write_json(folder / "conversion_report.json", report)
    (folder / "README.md").write_text(card, encoding="utf-8")


def image_processor(model: PreTrainedModel, target: Target) -> dict:
    """The original's evaluation, as an image processor of Transformers."""
    settings = {"semantic-segmentation": segmentor_processor, "object-detection": detector_processor}
    settings["instance-segmentation"] = instance_segmenter_processor
    return {
        **settings.get(target.task, cropping_processor)(model, target),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    }


def cropping_processor(model: PreTrainedModel, target: Target) -> dict:
    """For a classifier: shortest side to 256 / 224 of the size, bicubic, then the centre.

    A backbone's feature maps belong to the whole image, so there it is neither resized nor cropped.
    """
    height, width = image_size(model.config)
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": target.has_classes,
        "size": {"shortest_edge": int(256 / 224 * max(height, width))},
        "resample": BICUBIC,
        "do_center_crop": target.has_classes,
        "crop_size": {"height": height, "width": width},
    }


def segmentor_processor(model: PreTrainedModel, target: Target) -> dict:
    """For a segmentor: the whole image, its shorter side 512 unless the longer one would exceed 2048, bilinear.

    In ADE20K's masks 0 stands for no class, so labels are one less. The original also stretched both sides to
    multiples of 32, which nothing here needs; `examples/evaluate_segmentation.py` does it too.
    """
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": 512, "longest_edge": 2048},
        "resample": BILINEAR,
        "do_reduce_labels": model.config.num_labels == ADE20K_CLASSES,
    }


def detector_processor(model: PreTrainedModel, target: Target) -> dict:
    """For a detector: the shorter side 800 unless the longer one would exceed 1333, bilinear.

    Images of one batch are padded to the largest, below and on the right; the model itself pads to multiples of 32.
    """
    return {
        "image_processor_type": "DeformableDetrImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 800, "longest_edge": 1333},
        "resample": BILINEAR,
        "do_pad": True,
        "do_convert_annotations": True,
        "format": "coco_detection",
    }


def instance_segmenter_processor(model: PreTrainedModel, target: Target) -> dict:
    """For an instance segmenter: the same, and masks."""
    name = "CrossFormerImageProcessor"
    return {
        **detector_processor(model, target),
        "image_processor_type": name,
        "auto_map": {"AutoImageProcessor": f"image_processing_crossformer.{name}"},
        "return_segmentation_masks": True,
    }


def image_size(config: CrossFormerConfig) -> tuple[int, int]:
    """Height and width, in pixels, of the images that the model was trained on."""
    size = config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def key_report(model: PreTrainedModel, source: str, variant: str | None, report: KeyReport) -> dict:
    """What was converted, to what, and what became of every key."""
    about = {
        "checkpoint": source,
        "variant": variant,
        "model": type(model).__name__,
        "grouping": crossformer_config(model.config).grouping,
    }
    return {**about, **asdict(report)}


def write_json(path: Path, content: dict) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Keep Transformers from drawing a bar for one small file."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
