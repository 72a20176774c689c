"""The pipelines and Auto classes after `import crossformer_hf`, on whatever users hand them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_semantic_segmentation import tiny_segmentor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from crossformer_hf import CrossFormerConfig, CrossFormerForImageClassification, CrossFormerModel


CLASSES = ["sky", "road", "car", "tree", "house"]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


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
    expected = (cropped - IMAGENET_MEAN) / IMAGENET_STD
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


@pytest.fixture
def segmentor_folder(tmp_path):
    """A segmentor that tells five classes apart, and an image processor that resizes as mmsegmentation does."""
    model = tiny_segmentor(id2label=dict(enumerate(CLASSES)))
    model.decode_head.classifier.weight.data *= 50  # so that no class wins everywhere
    model.save_pretrained(tmp_path)
    processor = {
        "image_processor_type": "SegformerImageProcessor",
        "size": {"shortest_edge": 96, "longest_edge": 192},
        "resample": 2,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path


def test_segmentation_of_an_image_of_odd_size(segmentor_folder):
    """By hand: resize to 111 x 96, normalise, resize the logits to the photo's own size, and take the best class."""
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    photo = coarse.resize((301, 259), Image.Resampling.BICUBIC)
    segment = pipeline("image-segmentation", model=str(segmentor_folder))
    answers = segment(photo)
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
    pixels = torch.nn.functional.interpolate(pixels, size=(96, 111), mode="bilinear", antialias=True) / 255
    mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD])[..., None, None]
    logits = segment.model((pixels - mean) / std).logits
    assert logits.shape == (1, 5, 24, 28)
    logits = torch.nn.functional.interpolate(logits, size=(259, 301), mode="bilinear")
    expected = logits.argmax(dim=1)[0]
    assert [answer["label"] for answer in answers] == [CLASSES[index] for index in expected.unique()]
    assert len(answers) > 1
    for answer in answers:
        assert answer["mask"].size == (301, 259)
        mask = torch.from_numpy(np.array(answer["mask"])) == 255
        assert torch.equal(mask, expected == CLASSES.index(answer["label"]))
