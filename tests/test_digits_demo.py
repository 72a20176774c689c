"""The demo does what it says: it trains, saves, loads back, classifies and draws."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from examples import digits_demo


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Folder that the demo wrote in one epoch."""
    output = tmp_path_factory.mktemp("demo") / "digits"
    digits_demo.main(["--epochs", "1", "--output", str(output)])
    return output


def test_writes_only_what_it_says(output):
    assert {path.name for path in output.iterdir()} == {"model", "predictions.png", "example.png"}
    assert Image.open(output / "predictions.png").width > 1000


def test_pipeline_agrees_with_the_model(output):
    images = list(digits_demo.load_splits(seed=0)["test"]["image"])
    model = AutoModelForImageClassification.from_pretrained(output / "model").eval()
    processor = AutoImageProcessor.from_pretrained(output / "model")
    with torch.no_grad():
        scores, labels = model(**processor(images, return_tensors="pt")).logits.softmax(-1).max(-1)

    answers = [answer[0] for answer in pipeline("image-classification", str(output / "model"))(images, top_k=1)]
    assert [answer["label"] for answer in answers] == [model.config.id2label[label] for label in labels.tolist()]
    assert [answer["score"] for answer in answers] == pytest.approx(scores.tolist(), abs=1e-4)


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_saved_processor_prepares_images_as_in_training(output, backend):
    image = digits_demo.load_splits(seed=0)["test"][0]["image"]
    processor = AutoImageProcessor.from_pretrained(output / "model", backend=backend)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    trained_on = digits_demo.build_image_processor()(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    # The backends round 8-bit pixels differently: one of 255 steps over [-1, 1].
    torch.testing.assert_close(pixels, trained_on, atol=0.01 if backend == "pil" else 0, rtol=0)


def test_split_is_stratified_and_repeatable():
    splits, again = digits_demo.load_splits(seed=3), digits_demo.load_splits(seed=3)
    counts = torch.tensor(list(splits["test"]["label"])).bincount()
    assert (len(splits["train"]), len(splits["test"])) == (1437, 360)
    assert counts.min() >= 35
    assert list(splits["test"]["label"]) == list(again["test"]["label"])


def test_missing_package_is_one_line():
    code = "import sys; sys.modules['matplotlib'] = None; import examples.digits_demo"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "`matplotlib" in result.stderr and "crossformer-hf[train]" in result.stderr


def test_illegal_epochs(capsys):
    with pytest.raises(SystemExit):
        digits_demo.main(["--epochs", "0"])
    assert "--epochs is 0" in capsys.readouterr().err


@pytest.mark.slow
def test_accuracy(tmp_path):
    """The demo as `make demo` runs it."""
    assert digits_demo.main(["--output", str(tmp_path)]) >= 0.97
