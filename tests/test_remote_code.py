"""A converted folder works with `trust_remote_code=True` where this package cannot be imported."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import image_for
from PIL import Image
from stand_in_hub import serve
from test_detection import DETECTORS, INSTANCE, tiny_detector
from test_semantic_segmentation import tiny_segmentor
from transformers import (
    AutoImageProcessor,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    pipeline,
)

import crossformer_hf
from conversion.hub_folder import AUTO_MAP, CODE_FILES
from crossformer_hf import (
    CrossFormerBackbone,
    CrossFormerForImageClassification,
    CrossFormerImageProcessor,
    CrossFormerModel,
)


REPO_ID = "someone/crossformer-pp-micro"
SHAPE = (1, 3, 61, 100)
PREAMBLE = """
import sys
sys.modules["crossformer_hf"] = None  # importing it raises ImportError from here on
import numpy as np, torch
from transformers import (AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
                          AutoModelForInstanceSegmentation, AutoModelForObjectDetection,
                          AutoModelForSemanticSegmentation, pipeline)
source, image_file, output_file = sys.argv[1:]
pixel_values = torch.from_numpy(np.load(image_file))
outputs = {}
def save(name, tensor):
    outputs[name] = tensor.detach().numpy()
    np.savez(output_file, **outputs)
"""
EACH_CLASS = """
config = AutoConfig.from_pretrained(source, trust_remote_code=True)
assert config.model_type == "crossformer" and type(config).__module__.startswith("transformers_modules")
model = AutoModel.from_pretrained(source, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules")
save("last_hidden_state", model(pixel_values).last_hidden_state)
classifier = AutoModelForImageClassification.from_pretrained(source, trust_remote_code=True)
save("logits", classifier(pixel_values).logits)
segmentor = AutoModelForSemanticSegmentation.from_pretrained(source, trust_remote_code=True)  # with a new head
assert type(segmentor).__module__.startswith("transformers_modules")
assert segmentor(pixel_values).logits.shape == (1, 10, 16, 25)
assert "crop_size" in AutoImageProcessor.from_pretrained(source, trust_remote_code=True).to_dict()
"""
SEGMENTOR = """
segmentor = AutoModelForSemanticSegmentation.from_pretrained(source, trust_remote_code=True)
assert type(segmentor).__module__.startswith("transformers_modules")
save("logits", segmentor(pixel_values).logits)
from PIL import Image
image = Image.new("RGB", (101, 61))
answers = pipeline("image-segmentation", model=source, trust_remote_code=True)(image)
assert sum(np.asarray(answer["mask"]).astype(bool) for answer in answers).all()
assert {answer["mask"].size for answer in answers} == {image.size}
"""
DETECTOR = """
from PIL import Image
processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=True)
is_instance = AutoConfig.from_pretrained(source, trust_remote_code=True).architectures[0].endswith("Segmentation")
auto = AutoModelForInstanceSegmentation if is_instance else AutoModelForObjectDetection
detector = auto.from_pretrained(source, trust_remote_code=True)
assert type(detector).__module__.startswith("transformers_modules")
found = detector(pixel_values)
save("logits", found.logits)
save("pred_boxes", found.pred_boxes)
image = Image.fromarray((np.load(image_file)[0].transpose(1, 2, 0) * 40 + 128).clip(0, 255).astype("uint8"))
model = detector if is_instance else source
find = pipeline("object-detection", model=model, image_processor=processor, trust_remote_code=True)
answers = find(image, threshold=0.1)
save("scores", torch.tensor([answer["score"] for answer in answers]))
save("boxes", torch.tensor([list(answer["box"].values()) for answer in answers]))
if is_instance:
    assert type(processor).__module__.startswith("transformers_modules")
    save("pred_masks", found.pred_masks)
    segment = pipeline("image-segmentation", model=detector, image_processor=processor)
    parts = segment(image, subtask="instance", threshold=0.1)
    assert parts and {part["mask"].size for part in parts} == {image.size}
    save("mask", torch.from_numpy(np.array(parts[0]["mask"])))
# A new head on these weights starts as it does with the package, from the notes on its layers.
fresh = auto.from_pretrained(source, trust_remote_code=True, num_labels=7, ignore_mismatched_sizes=True)
bias = (fresh.box_head if is_instance else fresh.head).classifier.bias
assert len(bias) == (8 if is_instance else 63)
save("bias", bias)
"""
BACKBONE_FROM_HUB = """
backbone = AutoBackbone.from_pretrained(source, trust_remote_code=True, out_features=["stage2", "stage4"])
for index, feature_map in enumerate(backbone(pixel_values).feature_maps):
    save(f"feature_map_{index}", feature_map)
"""
BACKBONE_FROM_FOLDER = """
config = AutoConfig.from_pretrained(source, trust_remote_code=True, out_features=["stage2", "stage4"])
backbone = AutoBackbone.from_config(config, trust_remote_code=True)
assert [m.shape[1] for m in backbone(pixel_values).feature_maps] == backbone.channels
"""
PIPELINES = """
from PIL import Image
image = Image.fromarray((np.load(image_file)[0].transpose(1, 2, 0) * 40 + 128).clip(0, 255).astype("uint8"))
classify = pipeline("image-classification", model=source, trust_remote_code=True)
save("scores", torch.tensor([answer["score"] for answer in classify(image, top_k=10)]))
extract = pipeline("image-feature-extraction", model=source, trust_remote_code=True, pool=True)
save("features", torch.tensor(extract(image)))
"""
SAVE_AGAIN = """
import os
classifier = AutoModelForImageClassification.from_pretrained(source, trust_remote_code=True)
folder = os.path.join(os.path.dirname(output_file), "saved again")
classifier.save_pretrained(folder)
again = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
save("logits", again(pixel_values).logits)
"""


@pytest.fixture
def run_without_package(tmp_path):
    """Function that runs code in a new process without this package; returns what the code saved."""
    np.save(tmp_path / "image.npy", image_for(SHAPE, seed=3).numpy())

    def run(code: str, source: str, endpoint: str = "http://127.0.0.1:9") -> dict[str, np.ndarray]:
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" and not key.startswith("HF_")}
        environment = {**kept, "HF_HOME": str(tmp_path / "hf_home"), "HF_ENDPOINT": endpoint}
        arguments = [source, str(tmp_path / "image.npy"), str(tmp_path / "outputs.npz")]
        command = [sys.executable, "-c", PREAMBLE + code, *arguments]
        process = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert process.returncode == 0, process.stderr[-3000:]
        outputs = tmp_path / "outputs.npz"
        return dict(np.load(outputs)) if outputs.exists() else {}

    return run


def assert_close(actual: np.ndarray, expected: torch.Tensor):
    torch.testing.assert_close(torch.from_numpy(actual), expected.detach(), rtol=1e-4, atol=1e-5)


def assert_same_as_package(outputs: dict[str, np.ndarray], folder):
    pixel_values = image_for(SHAPE, seed=3)
    assert_close(outputs["logits"], CrossFormerForImageClassification.from_pretrained(folder)(pixel_values).logits)
    model = CrossFormerModel.from_pretrained(folder)
    assert_close(outputs["last_hidden_state"], model(pixel_values).last_hidden_state)


def test_from_a_folder(converted, run_without_package):
    assert_same_as_package(run_without_package(EACH_CLASS + BACKBONE_FROM_FOLDER, str(converted)), converted)


def test_from_a_hub(converted, run_without_package):
    with serve(converted, REPO_ID) as endpoint:
        outputs = run_without_package(EACH_CLASS + BACKBONE_FROM_HUB, REPO_ID, endpoint)
    assert_same_as_package(outputs, converted)
    backbone = CrossFormerBackbone.from_pretrained(converted, out_features=["stage2", "stage4"])
    for index, feature_map in enumerate(backbone(image_for(SHAPE, seed=3)).feature_maps):
        assert_close(outputs[f"feature_map_{index}"], feature_map)


def test_pipelines(converted, run_without_package):
    outputs = run_without_package(PIPELINES, str(converted))
    pixels = (image_for(SHAPE, seed=3)[0].numpy().transpose(1, 2, 0) * 40 + 128).clip(0, 255).astype("uint8")
    image = Image.fromarray(pixels)
    answers = pipeline("image-classification", model=str(converted))(image, top_k=10)
    assert_close(outputs["scores"], torch.tensor([answer["score"] for answer in answers]))
    features = pipeline("image-feature-extraction", model=str(converted), pool=True)(image)
    assert_close(outputs["features"], torch.tensor(features))


def test_a_model_saved_from_remote_code_loads_again(converted, run_without_package):
    outputs = run_without_package(SAVE_AGAIN, str(converted))
    expected = CrossFormerForImageClassification.from_pretrained(converted)(image_for(SHAPE, seed=3)).logits
    assert_close(outputs["logits"], expected)


@pytest.fixture(scope="module")
def segmentor_folder(tmp_path_factory) -> Path:
    """A segmentor with the code and an image processor, as a converted folder has them."""
    folder = tmp_path_factory.mktemp("segmentor")
    model = tiny_segmentor()
    model.config.auto_map = AUTO_MAP
    model.save_pretrained(folder)
    for name in CODE_FILES:
        shutil.copyfile(Path(crossformer_hf.__file__).parent / name, folder / name)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "SegformerImageProcessor"}')
    return folder


def test_segmentor_from_a_hub(segmentor_folder, run_without_package):
    with serve(segmentor_folder, REPO_ID) as endpoint:
        outputs = run_without_package(SEGMENTOR, REPO_ID, endpoint)
    assert_close(outputs["logits"], tiny_segmentor()(image_for(SHAPE, seed=3)).logits)


@pytest.fixture(params=DETECTORS)
def detector_folder(request, tmp_path) -> Path:
    """A detector with the code and an image processor, as a converted folder has them."""
    folder = tmp_path / "detector"
    model = tiny_detector(request.param)
    model.config.auto_map = AUTO_MAP
    model.save_pretrained(folder)
    for name in CODE_FILES:
        shutil.copyfile(Path(crossformer_hf.__file__).parent / name, folder / name)
    settings = {"image_processor_type": "DeformableDetrImageProcessor", "size": {"height": 64, "width": 96}}
    if request.param is INSTANCE:
        code = {"AutoImageProcessor": "image_processing_crossformer.CrossFormerImageProcessor"}
        settings |= {"image_processor_type": "CrossFormerImageProcessor", "auto_map": code}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_detectors(detector_folder, run_without_package):
    """Mask R-CNN from a Hub and RetinaNet from a folder."""
    if json.loads((detector_folder / "config.json").read_text())["architectures"] == [INSTANCE.__name__]:
        with serve(detector_folder, REPO_ID) as endpoint:
            outputs = run_without_package(DETECTOR, REPO_ID, endpoint)
    else:
        outputs = run_without_package(DETECTOR, str(detector_folder))
    is_instance = "pred_masks" in outputs
    auto = AutoModelForInstanceSegmentation if is_instance else AutoModelForObjectDetection
    model, processor = auto.from_pretrained(detector_folder), AutoImageProcessor.from_pretrained(detector_folder)
    assert type(model) is (INSTANCE if is_instance else DETECTORS[0])
    expected = model(image_for(SHAPE, seed=3))
    for name in expected:
        assert_close(outputs[name], expected[name])
    pixels = (image_for(SHAPE, seed=3)[0].numpy().transpose(1, 2, 0) * 40 + 128).clip(0, 255).astype("uint8")
    find = pipeline("object-detection", model=model, image_processor=processor)
    answers = find(Image.fromarray(pixels), threshold=0.1)
    assert len(answers) > 1
    assert_close(outputs["scores"], torch.tensor([answer["score"] for answer in answers]))
    assert outputs["boxes"].tolist() == [list(answer["box"].values()) for answer in answers]
    rare = 0.0 if is_instance else -math.log(99)
    assert outputs["bias"] == pytest.approx(rare)
    if is_instance:
        assert isinstance(processor, CrossFormerImageProcessor)
        segment = pipeline("image-segmentation", model=model, image_processor=processor)
        part = segment(Image.fromarray(pixels), subtask="instance", threshold=0.1)[0]
        assert (outputs["mask"] == np.array(part["mask"])).all() and outputs["mask"].any()
