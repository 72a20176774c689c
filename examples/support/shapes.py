"""Generated images for trying things offline: coloured shapes on textured backgrounds, with every kind of annotation.

Everything follows from a seed, so the same call gives the same images on any machine.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm


BACKGROUND = 0
CLASS_NAMES = ("background", "circle", "square", "triangle", "star")
# Hue of each shape, a fraction of a turn, which varies by HUE_JITTER.
HUES = {"circle": 0.97, "square": 0.6, "triangle": 0.36, "star": 0.13}
HUE_JITTER = 0.05
SUPERSAMPLING = 4
SMALLEST_VISIBLE_SHARE = 0.2


@dataclass
class ShapesImage:
    """An image and where its shapes are; `n` is the number of shapes that can be seen.

    Attributes:
        image: RGB.
        semantic_mask: Class of each pixel (height, width), uint8; 0 is the background.
        instance_masks: Visible pixels of each shape (n, height, width), bool; later shapes cover earlier ones.
        boxes: Smallest boxes around the visible pixels (n, 4): left, top, right, bottom in pixels, the last two
            exclusive.
        labels: Class of each shape (n,), from 1.
    """

    image: Image.Image
    semantic_mask: np.ndarray
    instance_masks: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def make_shapes_image(seed: int, index: int, size: int = 96, min_shapes: int = 2, max_shapes: int = 4) -> ShapesImage:
    """Image number `index` of the data set that `seed` stands for, `size` x `size` pixels."""
    generator = np.random.default_rng([seed, index])
    pixels = make_texture(generator, size)
    owner = np.full((size, size), -1)
    labels = generator.integers(1, len(CLASS_NAMES), generator.integers(min_shapes, max_shapes + 1))
    areas = []
    for number, label in enumerate(labels):
        coverage = draw_coverage(generator, CLASS_NAMES[label], size)
        color = shape_color(generator, CLASS_NAMES[label])
        shading = 1 + 0.08 * make_noise(generator, size, cells=4)
        pixels = pixels + coverage[..., None] * (color * shading[..., None] - pixels)
        owner[coverage >= 0.5] = number
        areas.append((coverage >= 0.5).sum())
    pixels = pixels + generator.normal(0, 0.02, pixels.shape)
    image = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
    semantic_mask = np.where(owner >= 0, labels[owner], BACKGROUND).astype(np.uint8)
    return ShapesImage(image, semantic_mask, *visible_instances(owner, labels, areas))


def visible_instances(owner: np.ndarray, labels: np.ndarray, areas: list[int]) -> tuple[np.ndarray, ...]:
    """Masks, boxes and labels of the shapes that later ones left in sight.

    Args:
        owner: Number of the shape that each pixel shows (height, width), -1 for the background.
        labels: Class of each shape.
        areas: Pixels of each shape before later ones covered some of them.
    """
    masks = np.stack([owner == number for number in range(len(labels))])
    seen = masks.sum((1, 2)) > SMALLEST_VISIBLE_SHARE * np.maximum(areas, 1)
    masks, labels = masks[seen], labels[seen]
    boxes = np.array([box_around(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)
    return masks, boxes, labels


def box_around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest box around the true pixels of (height, width): left, top, right, bottom, the last two exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def make_noise(generator: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise (size, size) in [-1, 1] whose bumps are `size / cells` pixels wide."""
    coarse = Image.fromarray(generator.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).clip(-1, 1)


def make_texture(generator: np.random.Generator, size: int) -> np.ndarray:
    """Textured background (size, size, 3) in [0, 1]: clouds and stripes in two muted colours."""
    first, second = (0.5 + 0.3 * generator.uniform(-1, 1) + generator.uniform(-0.16, 0.16, (2, 3)))[:, None, None]
    rows, columns = np.mgrid[:size, :size] / size
    angle, frequency = generator.uniform(0, np.pi), generator.uniform(4, 12)
    stripes = np.sin(2 * np.pi * frequency * (np.cos(angle) * rows + np.sin(angle) * columns))
    clouds = make_noise(generator, size, cells=3) + 0.5 * make_noise(generator, size, cells=12)
    blend = 0.5 + 0.5 * np.clip(clouds + generator.uniform(0, 0.5) * stripes, -1, 1)[..., None]
    grain = 0.05 * make_noise(generator, size, cells=size // 3)[..., None]
    return first + blend * (second - first) + grain


def shape_color(generator: np.random.Generator, name: str) -> np.ndarray:
    """Saturated RGB colour in [0, 1] of the hue that stands for the shape, slightly varied."""
    hue = HUES[name] + generator.uniform(-HUE_JITTER, HUE_JITTER)
    saturation, value = generator.uniform(0.65, 0.95), generator.uniform(0.65, 0.95)
    distance = np.abs((hue - np.array([0, 1 / 3, 2 / 3]) + 0.5) % 1 - 0.5) * 6
    return value * (1 - saturation * (distance - 1).clip(0, 1))


def draw_coverage(generator: np.random.Generator, name: str, size: int) -> np.ndarray:
    """Share of each pixel (size, size) that a shape at a random place, size and angle covers."""
    radius = generator.uniform(0.16, 0.3) * size
    center = generator.uniform(0.8 * radius, size - 0.8 * radius, 2)
    outline = center + radius * shape_outline(name, generator.uniform(0, 2 * np.pi))
    canvas = Image.new("L", (SUPERSAMPLING * size, SUPERSAMPLING * size))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in SUPERSAMPLING * outline], fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING)) / 255


def shape_outline(name: str, angle: float) -> np.ndarray:
    """Corners (n, 2) of the shape in the unit circle, turned by `angle` radians."""
    corners = {"circle": 64, "square": 4, "triangle": 3, "star": 10}[name]
    angles = angle + np.arange(corners) * 2 * np.pi / corners
    radii = np.where(np.arange(corners) % 2, 0.45, 1.0) if name == "star" else np.ones(corners)
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def write_image_folder(folder: Path, num_images: int, seed: int, size: int = 96) -> Path:
    """Write images to `folder/images`, their masks to `folder/masks` and the names of the classes; return `folder`.

    A folder that is already complete is left as it is; one from an interrupted call is written anew.
    """
    description = {"num_images": num_images, "seed": seed, "size": size, "classes": CLASS_NAMES}
    finished = folder / "shapes.json"
    if finished.exists() and json.loads(finished.read_text()) == json.loads(json.dumps(description)):
        return folder
    for name in ("images", "masks"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    for index in tqdm(range(num_images), desc=f"Drawing {folder.name} images", leave=False):
        sample = make_shapes_image(seed, index, size)
        sample.image.save(folder / "images" / f"{index:05d}.png")
        Image.fromarray(sample.semantic_mask).save(folder / "masks" / f"{index:05d}.png")
    (folder / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    finished.write_text(json.dumps(description))
    return folder
