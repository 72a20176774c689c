"""The names of the classes: ImageNet's, ADE20K's, COCO's, or those in a file."""

import json
from collections import Counter
from pathlib import Path

from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from conversion.command import ConversionError


IMAGENET_CLASSES = 1000
ADE20K_CLASSES = 150
COCO_CLASSES = 80
# In the order of mmsegmentation's outputs; in the data set's masks each is one more, and 0 is no class.
ADE20K_NAMES = Path(__file__).parent / "ade20k_classes.txt"


def class_names(num_labels: int, task: str, labels: Path | None = None) -> list[str]:
    """Names of a head's classes, in order: from the file `labels`, those of the data set, else `LABEL_0` and so on.

    A classifier with 1000 classes is taken for one of ImageNet's, a segmentor with 150 for one of ADE20K's, and a
    detector with 80 for one of COCO's.

    Raises:
        ConversionError: The file cannot be read, or does not name each class.
    """
    if labels is not None:
        return distinct(read_labels(labels, num_labels))
    if task == "image-classification" and num_labels == IMAGENET_CLASSES:
        return distinct(imagenet_names())
    if task == "semantic-segmentation" and num_labels == ADE20K_CLASSES:
        return read_labels(ADE20K_NAMES, num_labels)
    if task in ("object-detection", "instance-segmentation") and num_labels == COCO_CLASSES:
        return coco_names()
    return default_names(num_labels)


def default_names(num_labels: int) -> list[str]:
    """What Transformers calls classes without a name."""
    return [f"LABEL_{index}" for index in range(num_labels)]


def imagenet_names() -> list[str]:
    """The 1000 names of ImageNet-1k, in the order of the original's outputs."""
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise ConversionError(
            "ImageNet's class names come from timm, which is not installed; "
            'run `pip install "crossformer-hf[convert]"` or give the names with --labels'
        ) from error
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(index) for index in range(IMAGENET_CLASSES)]


def coco_names() -> list[str]:
    """The 80 names of COCO's objects, in the order of mmdetection's outputs, which is that of their ids."""
    categories = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return [name for name in categories if name not in ("__background__", "N/A")]


def distinct(names: list[str]) -> list[str]:
    """The same names, with their position added to those that occur twice, such as ImageNet's bird and machine.

    >>> distinct(["crane", "goldfish", "crane"])
    ['crane (0)', 'goldfish', 'crane (2)']
    """
    counts = Counter(names)
    return [f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names)]


def read_labels(path: Path, num_labels: int) -> list[str]:
    """Read `num_labels` names from a JSON object of ids and names, a JSON list, or a text file of one name a line."""
    names = _parse_labels(path, _read_text(path))
    if len(names) != num_labels:
        raise ConversionError(
            f"{path} names {len(names)} classes, but the checkpoint's head has {num_labels}; give one name per class"
        )
    return names


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path} is no text file; give a JSON file or one class name a line") from error


def _parse_labels(path: Path, text: str) -> list[str]:
    if path.suffix != ".json" and not text.lstrip().startswith(("{", "[")):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        names = json.loads(text)
        if isinstance(names, dict):
            names = [names[str(index)] for index in range(len(names))]
    except (ValueError, KeyError, RecursionError) as error:
        raise ConversionError(f"{path} is no JSON object of the ids 0, 1, … and names; correct it") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConversionError(f"{path} holds something else than names; give a JSON list or object of strings")
    return names
