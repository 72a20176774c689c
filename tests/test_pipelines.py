"""The pipelines and Auto classes after `import crossformer_hf`, on whatever users hand them."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from crossformer_hf import CrossFormerConfig, CrossFormerForImageClassification, CrossFormerModel


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return smooth.resize((300, 260), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def classify(converted):
    return pipeline("image-classification", model=str(converted))


def test_auto_classes(converted):
    assert isinstance(AutoConfig.from_pretrained(converted), CrossFormerConfig)
    assert isinstance(AutoModel.from_pretrained(converted), CrossFormerModel)
    assert isinstance(AutoModelForImageClassification.from_pretrained(converted), CrossFormerForImageClassification)


def test_image_processor_is_the_originals_evaluation(converted, photo):
    """Shorter side to int(256 / 224 * 224), bicubic, centre crop, ImageNet mean and standard deviation."""
    pixel_values = AutoImageProcessor.from_pretrained(converted)(photo, return_tensors="pt").pixel_values
    resized = photo.resize((int(300 * 256 / 260), 256), Image.Resampling.BICUBIC)
    left = (resized.width - 224) // 2
    cropped = np.asarray(resized.crop((left, 16, left + 224, 240)), dtype=np.float32) / 255
    expected = (cropped - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    difference = (pixel_values[0] - torch.from_numpy(expected).permute(2, 0, 1)).abs()
    assert pixel_values.shape == (1, 3, 224, 224)
    assert difference.mean() < 0.01  # PIL and torchvision round bicubic weights differently


def test_classification_of_one_image_and_of_lists(classify, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    by_image = classify(photo)
    assert [sorted(answer) for answer in by_image] == [["label", "score"]] * 5
    assert classify(str(tmp_path / "photo.png")) == by_image
    for answers in classify([photo, str(tmp_path / "photo.png"), photo], batch_size=2):
        assert [answer["label"] for answer in answers] == [answer["label"] for answer in by_image]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_classification_of_other_colour_modes(classify, photo, mode):
    assert sum(answer["score"] for answer in classify(photo.convert(mode), top_k=10)) == pytest.approx(1, abs=1e-5)


def test_feature_extraction(converted, photo):
    extract = pipeline("image-feature-extraction", model=str(converted))
    assert np.shape(extract(photo)) == (1, 49, 128)
    assert np.shape(extract([photo, photo.convert("L")])) == (2, 1, 49, 128)
    pooled = pipeline("image-feature-extraction", model=str(converted), pool=True)
    assert np.shape(pooled(photo)) == (1, 128)
