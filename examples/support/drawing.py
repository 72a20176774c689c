"""Pictures of segmented images: colours for classes, overlays, legends."""

import colorsys
from collections.abc import Sequence
from textwrap import shorten
from typing import BinaryIO

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image


GOLDEN_RATIO = (1 + 5**0.5) / 2
OPACITY = 0.6
FIRST_CLASS = (0.66, 0.68, 0.72)
UNLABELLED = (1.0, 1.0, 1.0)
DOTS_PER_INCH = 120
SHORTEST_SIDE, LONGEST_SIDE = 420, 1600  # pixels of an image in a picture
TITLE_SIZE, LEGEND_SIZE = 13, 12
TILE_SIDE, LEGEND_WIDTH, LEGEND_LINE = 2.6, 2.6, 0.26  # inches
LONGEST_NAME = 30  # characters


def class_color(index: int) -> tuple[float, float, float]:
    """Colour of a class, RGB in [0, 1]: grey for the first, often a background, then hues far apart."""
    if index == 0:
        return FIRST_CLASS
    hue = (0.4 + index / GOLDEN_RATIO) % 1
    lightness = (0.52, 0.36, 0.7)[index // 8 % 3]
    return colorsys.hls_to_rgb(hue, lightness, 0.68)


def color_labels(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Class of each pixel (height, width) to RGB (height, width, 3) in [0, 1]; white where there is no class."""
    colors = np.array([class_color(index) for index in range(num_labels)] + [UNLABELLED])
    return colors[np.where((labels >= 0) & (labels < num_labels), labels, num_labels)]


def overlay(image: Image.Image, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Image under the colours of its classes: RGB (height, width, 3) in [0, 1], with darker edges between classes."""
    grey = np.asarray(image.convert("L"), dtype=float)[..., None] / 255
    picture = (1 - OPACITY) * grey + OPACITY * color_labels(labels, num_labels)
    picture[class_edges(labels)] *= 0.45
    return picture


def class_edges(labels: np.ndarray) -> np.ndarray:
    """Pixels (height, width) whose right or lower neighbour is of another class."""
    edges = np.zeros(labels.shape, dtype=bool)
    edges[:-1] |= labels[:-1] != labels[1:]
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return edges


def legend_patches(labels: np.ndarray, names: Sequence[str], with_shares: bool) -> list[Patch]:
    """One entry for each class that occurs in `labels`, most frequent first, with its share of the area if asked."""
    counts = np.bincount(labels[(labels >= 0) & (labels < len(names))].ravel(), minlength=len(names))
    entries = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    return [
        Patch(
            facecolor=class_color(index),
            edgecolor="black",
            linewidth=0.5,
            label=shorten(names[index], LONGEST_NAME, placeholder=" …")
            + (f"  {percent(counts[index] / labels.size)}" if with_shares else ""),
        )
        for index in entries
    ]


def percent(share: float) -> str:
    """`share` in percent, never 0 for something that is there."""
    return "< 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def shown_size(image: Image.Image) -> tuple[float, float]:
    """Width and height in inches at which an image is shown: small ones grow, very large ones shrink."""
    scale = max(1, SHORTEST_SIDE / min(image.size))
    scale = min(scale, LONGEST_SIDE / max(image.size))
    return tuple(max(scale * side, 60) / DOTS_PER_INCH for side in image.size)


def draw_segmentation(file: BinaryIO, image: Image.Image, labels: np.ndarray, names: Sequence[str]) -> None:
    """Draw an image, beside it the image with the classes in colours, and a legend with each class's share.

    Args:
        file: Open file to write a PNG to.
        image: RGB image.
        labels: Class of each pixel (height, width).
        names: Names of the classes.
    """
    width, height = shown_size(image)
    patches = legend_patches(labels, names, with_shares=True)
    figure = new_figure(2 * width, height + 0.4, patches)
    left, right = figure.subplots(1, 2)
    show(left, np.asarray(image))
    show(right, overlay(image, labels, len(names)))
    figure.savefig(file, format="png")


def draw_comparison(
    file: BinaryIO, rows: Sequence[tuple[Image.Image, np.ndarray, np.ndarray]], names: Sequence[str], title: str
) -> None:
    """Draw rows of an image, its true classes and the predicted ones, with one legend.

    Args:
        file: Open file to write a PNG to.
        rows: For each row the RGB image and the true and the predicted class of each pixel (height, width).
        names: Names of the classes.
        title: Line at the top.
    """
    seen = np.concatenate([labels.ravel() for row in rows for labels in row[1:]])
    patches = legend_patches(seen, names, with_shares=False)
    figure = new_figure(3 * TILE_SIDE, len(rows) * TILE_SIDE + 0.8, patches)
    figure.suptitle(title, fontsize=TITLE_SIZE)
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for (image, *maps), axes in zip(rows, grid, strict=True):
        for column, picture in zip(
            axes, [np.asarray(image), *(color_labels(labels, len(names)) for labels in maps)], strict=True
        ):
            show(column, picture)
    for column, heading in zip(grid[0], ("image", "truth", "prediction"), strict=True):
        column.set_title(heading, fontsize=LEGEND_SIZE)
    figure.savefig(file, format="png")


def new_figure(width: float, height: float, patches: list[Patch]) -> Figure:
    """Figure with a legend at the right of `width` x `height` inches for pictures; higher where the legend is."""
    height = max(height, LEGEND_LINE * len(patches) + 0.4)
    figure = Figure(figsize=(width + LEGEND_WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.08)
    figure.legend(handles=patches, loc="outside right upper", frameon=False, fontsize=LEGEND_SIZE)
    return figure


def show(axes, picture: np.ndarray) -> None:
    """Show a picture without ticks."""
    axes.imshow(picture, interpolation="nearest" if min(picture.shape[:2]) < SHORTEST_SIDE else "auto")
    axes.set_axis_off()
