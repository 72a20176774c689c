"""Pictures of images with boxes, labels, scores and masks."""

from collections import Counter
from collections.abc import Sequence
from textwrap import shorten
from typing import BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from pycocotools import mask as coco_masks

from .detection_inference import Detection
from .drawing import (
    LEGEND_SIZE,
    LONGEST_NAME,
    TILE_SIDE,
    TITLE_SIZE,
    class_color,
    class_edges,
    new_figure,
    show,
    shown_size,
)


MASK_OPACITY = 0.5
EDGE_SHADE = 0.6
LABEL_SIZE, LINE_WIDTH = 9, 2.0  # points
# A box in the colour of its object would not be seen.
HALO = withStroke(linewidth=LINE_WIDTH + 1.5, foreground="white")
TILE_SCALE = 1.4


def color_of(label: int) -> tuple[float, float, float]:
    """Colour of a class, RGB in [0, 1]; the first colour, a grey, is that of a background."""
    return class_color(label + 1)


def text_color(label: int) -> str:
    """Black or white, whichever is easier to read on the colour of a class."""
    return "black" if np.dot(color_of(label), (0.3, 0.59, 0.11)) > 0.5 else "white"


def paint_masks(image: Image.Image, detections: Sequence[Detection]) -> np.ndarray:
    """Image with masks in their classes' colours: RGB (height, width, 3) in [0, 1]; the most certain lie on top."""
    picture = np.asarray(image, dtype=float) / 255
    for detection in reversed(detections):
        if detection.segmentation:
            mask = coco_masks.decode(detection.segmentation).astype(bool)
            color = np.array(color_of(detection.label))
            picture[mask] = (1 - MASK_OPACITY) * picture[mask] + MASK_OPACITY * color
            picture[class_edges(mask)] = EDGE_SHADE * color
    return picture


def draw_boxes(axes: Axes, size: tuple[int, int], detections: Sequence[Detection], names: Sequence[str]) -> None:
    """Draw boxes with labels and scores; labels are above their boxes, or below the upper edge of the image."""
    for detection in reversed(detections):
        left, top, right, bottom = detection.box
        color = color_of(detection.label)
        frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=color)
        frame.set(linewidth=LINE_WIDTH, path_effects=[HALO])
        axes.add_patch(frame)
        is_high = top < 0.08 * size[0]
        axes.annotate(
            caption(detection, names),
            (max(left - 0.5, -0.5), max(top - 0.5, -0.5)),
            xytext=(2, -2 if is_high else 2),
            textcoords="offset points",
            verticalalignment="top" if is_high else "bottom",
            fontsize=LABEL_SIZE,
            color=text_color(detection.label),
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5},
        )


def caption(detection: Detection, names: Sequence[str]) -> str:
    """Name of the class, and the score if there is one."""
    name = shorten(names[detection.label], LONGEST_NAME, placeholder=" …")
    return name if detection.score is None else f"{name} {detection.score:.2f}"


def legend_of(labels: Sequence[int], names: Sequence[str], with_counts: bool) -> list[Patch]:
    """One entry for each class that occurs, most frequent first, with the number of its objects if asked."""
    return [
        Patch(
            facecolor=color_of(label),
            edgecolor="black",
            linewidth=0.5,
            label=shorten(names[label], LONGEST_NAME, placeholder=" …") + (f"  × {count}" if with_counts else ""),
        )
        for label, count in Counter(labels).most_common()
    ]


def show_objects(axes: Axes, image: Image.Image, detections: Sequence[Detection], names: Sequence[str]) -> None:
    """Show an image with masks, boxes, labels and scores."""
    show(axes, paint_masks(image, detections))
    draw_boxes(axes, image.size[::-1], detections, names)


def draw_detections(file: BinaryIO, image: Image.Image, detections: Sequence[Detection], names: Sequence[str]) -> None:
    """Draw an image, beside it the image with what was found, and a legend with the number of each class.

    Args:
        file: Open file to write a PNG to.
        image: RGB image.
        detections: What was found, most certain first.
        names: Names of the classes.
    """
    width, height = shown_size(image)
    legend = legend_of([detection.label for detection in detections], names, with_counts=True)
    figure = new_figure(2 * width, height + 0.4, legend or [Patch(alpha=0, label="nothing found")])
    left, right = figure.subplots(1, 2)
    show(left, np.asarray(image))
    show_objects(right, image, detections, names)
    figure.savefig(file, format="png")


def draw_truth_and_detections(
    file: BinaryIO,
    rows: Sequence[tuple[Image.Image, Sequence[Detection], Sequence[Detection]]],
    names: Sequence[str],
    title: str,
) -> None:
    """Draw rows of an image with its true objects and with those found, with one legend.

    Args:
        file: Open file to write a PNG to.
        rows: For each row the RGB image, the true objects (without scores) and those found.
        names: Names of the classes.
        title: Line at the top.
    """
    legend = legend_of([one.label for row in rows for objects in row[1:] for one in objects], names, with_counts=False)
    side = TILE_SCALE * TILE_SIDE
    figure = new_figure(2 * side, len(rows) * side + 0.8, legend or [Patch(alpha=0, label="nothing")])
    figure.suptitle(title, fontsize=TITLE_SIZE)
    grid = figure.subplots(len(rows), 2, squeeze=False)
    for (image, *columns), axes in zip(rows, grid, strict=True):
        for column, objects in zip(axes, columns, strict=True):
            show_objects(column, image, objects, names)
    for column, heading in zip(grid[0], ("truth", "prediction"), strict=True):
        column.set_title(heading, fontsize=LEGEND_SIZE)
    figure.savefig(file, format="png")
