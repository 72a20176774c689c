"""Generated images: repeatable, and their annotations agree with one another."""

import json

import numpy as np
import pytest
from PIL import Image
from support.shapes import CLASS_NAMES, make_shapes_image, shape_color, write_image_folder


SAMPLES = [make_shapes_image(seed=0, index=index, size=64) for index in range(30)]


def test_repeatable():
    first, again, other = (make_shapes_image(seed=3, index=index, size=48) for index in (5, 5, 6))
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert np.array_equal(first.semantic_mask, again.semantic_mask)
    assert not np.array_equal(np.asarray(first.image), np.asarray(other.image))


def test_every_class_occurs():
    assert {label for sample in SAMPLES for label in np.unique(sample.semantic_mask)} == set(range(len(CLASS_NAMES)))


@pytest.mark.parametrize("sample", SAMPLES[:8])
def test_annotations_agree(sample):
    assert sample.image.mode == "RGB" and sample.image.size == (64, 64)
    assert len(sample.instance_masks) == len(sample.boxes) == len(sample.labels)
    assert sample.instance_masks.sum(0).max() <= 1
    for mask, box, label in zip(sample.instance_masks, sample.boxes.astype(int), sample.labels, strict=True):
        left, top, right, bottom = box
        assert (sample.semantic_mask[mask] == label).all()
        assert mask[top:bottom, left:right].sum() == mask.sum() > 0
        assert mask[top].any() and mask[bottom - 1].any() and mask[:, left].any() and mask[:, right - 1].any()


def test_image_shows_the_classes_in_their_colors():
    colors = {name: shape_color(np.random.default_rng(0), name) for name in CLASS_NAMES[1:]}
    assert colors["circle"].argmax() == 0 and colors["triangle"].argmax() == 1 and colors["square"].argmax() == 2
    assert colors["star"].argmin() == 2


def test_folder_is_written_once_and_anew_when_incomplete(tmp_path):
    folder = write_image_folder(tmp_path / "shapes", num_images=3, seed=1, size=32)
    written = (folder / "images" / "00000.png").stat().st_mtime_ns
    mask = np.asarray(Image.open(folder / "masks" / "00002.png"))
    assert np.array_equal(mask, make_shapes_image(seed=1, index=2, size=32).semantic_mask)
    assert (folder / "classes.txt").read_text().split() == list(CLASS_NAMES)

    write_image_folder(folder, num_images=3, seed=1, size=32)
    assert (folder / "images" / "00000.png").stat().st_mtime_ns == written
    (folder / "shapes.json").unlink()
    (folder / "images" / "00009.png").touch()
    write_image_folder(folder, num_images=2, seed=1, size=32)
    assert len(list((folder / "images").iterdir())) == len(list((folder / "masks").iterdir())) == 2
    assert json.loads((folder / "shapes.json").read_text())["num_images"] == 2
