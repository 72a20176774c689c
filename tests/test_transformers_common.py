"""Transformers' own common tests, run on CrossFormer's classes as they run on every model inside transformers.

`upstream.py` fetches them for the installed version. Two tiny models take them: a CrossFormer whose maps divide into
groups, and a CrossFormer++ with cooling layers, progressive group sizes and groups that need padding.
"""

import math
import unittest
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import upstream
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device
from transformers.utils import ModelOutput

from crossformer_hf import (
    CrossFormerBackbone,
    CrossFormerConfig,
    CrossFormerForImageClassification,
    CrossFormerForInstanceSegmentation,
    CrossFormerForObjectDetection,
    CrossFormerForSemanticSegmentation,
    CrossFormerModel,
    modeling_crossformer_detection,
)


try:
    modeling_common = upstream.load("test_modeling_common")
    backbone_common = upstream.load("test_backbone_common")
    configuration_common = upstream.load("test_configuration_common")
    pipeline_mixin = upstream.load("test_pipeline_mixin")
except upstream.UpstreamTestsUnavailableError as error:
    raise pytest.Collector.CollectError(str(error)) from None

# 16 x 16, 8 x 8 and 4 x 4 tokens. The second stage has a short distance and a long distance layer.
TINY_CROSSFORMER = {
    "image_size": 32,
    "patch_sizes": [2, 4],
    "merge_sizes": [[2, 4], [2, 4]],
    "embed_dim": 16,
    "depths": [1, 2, 1],
    "num_heads": [2, 2, 4],
    "group_sizes": [4, 4, 4],
    "intervals": [4, 2, 1],
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.1,
    "fpn_hidden_size": 16,
    "decoder_hidden_size": 8,
    "out_features": ["stage1", "stage2"],
    "max_detections": 10,
    "score_threshold": 0.001,  # under the scores of initial weights
}
# 14 x 14 and 7 x 7 tokens. A cooling layer follows the third of the first stage's four layers.
TINY_CROSSFORMER_PLUS_PLUS = {
    "image_size": 28,
    "patch_sizes": [2, 4],
    "merge_sizes": [[2, 4]],
    "embed_dim": 16,
    "depths": [4, 1],
    "num_heads": [2, 4],
    "group_sizes": [[4, 4, 8, 8], [4]],
    "intervals": [2, 1],
    "use_cooling_layer": True,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.1,
    "fpn_hidden_size": 16,
    "decoder_hidden_size": 8,
    "out_features": ["stage1", "stage2"],
    "max_detections": 10,
    "score_threshold": 0.001,  # under the scores of initial weights
}

DETECTORS = (CrossFormerForObjectDetection, CrossFormerForInstanceSegmentation)


@pytest.fixture(scope="module", autouse=True)
def small_and_certain_heads() -> Iterator[None]:
    """Give Mask R-CNN few features and boxes, lest the tests take minutes, and all to learn from, lest losses vary."""
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"BOX_FEATURES": 32, "PROPOSALS": 30, "BOX_SAMPLES": 10**6, "PROPOSAL_SAMPLES": 10**6}
        for name, value in sizes.items():
            patch.setattr(modeling_crossformer_detection, name, value)
        yield


@pytest.fixture(scope="module", autouse=True)
def listed_by_transformers() -> Iterator[None]:
    """List the classes where the common tests look up what a class is for; unlisted ones pass without being tested."""
    listed = [
        (modeling_auto.MODEL_MAPPING_NAMES, CrossFormerModel),
        (modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, CrossFormerForImageClassification),
        (modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, CrossFormerForSemanticSegmentation),
        (modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES, CrossFormerForObjectDetection),
        (modeling_auto.MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES, CrossFormerForInstanceSegmentation),
        (modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES, CrossFormerBackbone),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for names, model_class in listed:
            patch.setitem(names, CrossFormerConfig.model_type, model_class.__name__)
        yield


class CrossFormerModelTester:
    """Makes a tiny configuration and inputs for it, and says which shapes a model must answer with."""

    batch_size = 13
    num_labels = 10
    is_training = True  # the common tests train only if this says so

    def __init__(self, parent: unittest.TestCase, settings: dict[str, Any]):
        """Take the test case and the configuration's settings."""
        self.parent = parent
        self.settings = settings
        self.image_size = settings["image_size"]

    def get_config(self) -> CrossFormerConfig:
        """Return the tiny configuration."""
        return CrossFormerConfig(**self.settings)

    def get_pixel_values(self, num_channels: int = 3) -> torch.Tensor:
        """Return images (batch, num_channels, image_size, image_size)."""
        return modeling_common.floats_tensor([self.batch_size, num_channels, self.image_size, self.image_size])

    def get_objects(self) -> dict[str, torch.Tensor]:
        """Return a detector's labels of one image."""
        size = self.image_size
        masks = torch.zeros(2, size, size, device=torch_device)
        masks[0, : size // 2], masks[1, :, : size // 2] = 1, 1
        boxes = torch.tensor([[0.5, 0.25, 1.0, 0.5], [0.25, 0.5, 0.5, 1.0]], device=torch_device)
        return {"class_labels": torch.tensor([0, 1], device=torch_device), "boxes": boxes, "masks": masks}

    def prepare_config_and_inputs_for_common(self) -> tuple[CrossFormerConfig, dict[str, torch.Tensor]]:
        """Return what the common tests ask for."""
        return self.get_config(), {"pixel_values": self.get_pixel_values()}

    def expected_feature_maps(self) -> list[tuple[int, ...]]:
        """Return the shapes (batch, channels, height, width) of the stem's map and then every stage's."""
        stem_size = self.image_size // self.settings["patch_sizes"][0]
        stages = range(len(self.settings["depths"]))
        maps = [
            (self.batch_size, self.settings["embed_dim"] * 2**stage, stem_size // 2**stage, stem_size // 2**stage)
            for stage in stages
        ]
        return [maps[0], *maps]

    def expected_attentions(self) -> list[tuple[int, ...]]:
        """Return the shapes (batch * groups, heads, tokens, tokens) of every layer's attention, stage after stage."""
        sizes = [feature_map[-1] for feature_map in self.expected_feature_maps()[1:]]
        return [
            self._expected_attention(stage, layer, sizes[stage])
            for stage, depth in enumerate(self.settings["depths"])
            for layer in range(depth)
        ]

    def _expected_attention(self, stage: int, layer: int, size: int) -> tuple[int, ...]:
        """Return the shape of one layer's attention on a map of `size` x `size` tokens."""
        group_size = self.settings["group_sizes"][stage]
        group_size = group_size[layer] if isinstance(group_size, list) else group_size
        interval = self.settings["intervals"][stage] if layer % 2 else 1
        side = min(group_size, math.ceil(size / interval))  # no group is larger than the map fills
        groups = (math.ceil(size / (side * interval)) * interval) ** 2
        return (self.batch_size * groups, self.settings["num_heads"][stage], side**2, side**2)


class CrossFormerModelTest(modeling_common.ModelTesterMixin, pipeline_mixin.PipelineTesterMixin, unittest.TestCase):
    """The common tests of models, pipelines and configurations."""

    settings = TINY_CROSSFORMER
    all_model_classes = (
        CrossFormerModel,
        CrossFormerBackbone,
        CrossFormerForImageClassification,
        CrossFormerForSemanticSegmentation,
        CrossFormerForObjectDetection,
        CrossFormerForInstanceSegmentation,
    )
    pipeline_model_mapping = {
        "image-feature-extraction": CrossFormerModel,
        "image-classification": CrossFormerForImageClassification,
        "image-segmentation": CrossFormerForSemanticSegmentation,
        "object-detection": CrossFormerForObjectDetection,
    }
    test_resize_embeddings = False
    # Asks for the test that models older than 2023 are let off, whatever year the source file's header names.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        """Make the testers that the common tests use."""
        self.model_tester = CrossFormerModelTester(self, self.settings)
        self.config_tester = configuration_common.ConfigTester(
            self,
            config_class=CrossFormerConfig,
            has_text_modality=False,
            common_properties=[
                "hidden_size",
                "num_attention_heads",
                "num_hidden_layers",
                "image_size",
                "num_channels",
            ],
            embed_dim=48,
        )

    def _prepare_for_class(
        self, inputs_dict: dict[str, torch.Tensor], model_class: type, return_labels: bool = False
    ) -> dict[str, Any]:
        """Return inputs for a class; a detector's labels are two objects with masks in each image."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class in DETECTORS:
            inputs["labels"] = [self.model_tester.get_objects() for _ in range(len(inputs["pixel_values"]))]
        return inputs

    def test_config(self):
        """The configuration passes the common tests of configurations."""
        self.config_tester.run_common_tests()

    def test_config_derived_sizes(self):
        """Hidden size, heads and layers follow from the settings of the stages."""
        config, stages = self.model_tester.get_config(), len(self.settings["depths"])
        self.assertEqual(config.hidden_size, self.settings["embed_dim"] * 2 ** (stages - 1))
        self.assertEqual(config.num_attention_heads, self.settings["num_heads"])
        self.assertEqual(config.num_hidden_layers, stages)

    def test_model(self):
        """The model returns the last map's tokens and their mean."""
        batch_size, channels, height, width = self.model_tester.expected_feature_maps()[-1]
        outputs = self._run(CrossFormerModel)
        self.assertEqual(outputs.last_hidden_state.shape, (batch_size, height * width, channels))
        torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state.mean(dim=1))

    def test_backbone(self):
        """The backbone returns the maps of the stages that were asked for, by default the last."""
        names = self.model_tester.get_config().stage_names
        shapes = dict(zip(names, self.model_tester.expected_feature_maps(), strict=True))
        for out_features in (["stage1", "stage2"], ["stem"], None):
            outputs = self._run(CrossFormerBackbone, out_features=out_features)
            expected = [shapes[name] for name in out_features or names[-1:]]
            self.assertEqual([tuple(feature_map.shape) for feature_map in outputs.feature_maps], expected)

    def test_image_classification(self):
        """The classifier returns a logit per label, for colour and for grey images."""
        num_labels = self.model_tester.num_labels
        labels = modeling_common.ids_tensor([self.model_tester.batch_size], num_labels)
        for num_channels in (3, 1):
            outputs = self._run(
                CrossFormerForImageClassification, labels=labels, num_labels=num_labels, num_channels=num_channels
            )
            self.assertEqual(outputs.logits.shape, (self.model_tester.batch_size, num_labels))
            self.assertEqual(outputs.loss.shape, ())

    def test_semantic_segmentation(self):
        """The segmentor returns a logit per label for each token of the first stage."""
        tester, num_labels = self.model_tester, self.model_tester.num_labels
        labels = modeling_common.ids_tensor([tester.batch_size, tester.image_size, tester.image_size], num_labels)
        for num_channels in (3, 1):
            outputs = self._run(
                CrossFormerForSemanticSegmentation, labels=labels, num_labels=num_labels, num_channels=num_channels
            )
            batch_size, _, height, width = tester.expected_feature_maps()[0]
            self.assertEqual(outputs.logits.shape, (batch_size, num_labels, height, width))
            self.assertEqual(outputs.loss.shape, ())

    def test_detection(self):
        """The detectors return boxes, and the losses of labels."""
        labels = [self.model_tester.get_objects() for _ in range(self.model_tester.batch_size)]
        for num_channels in (3, 1):
            for model_class in DETECTORS:
                outputs = self._run(model_class, labels=labels, num_labels=4, num_channels=num_channels)
                self.assertEqual(outputs.logits.shape, (self.model_tester.batch_size, 10, 4))
                self.assertEqual(outputs.pred_boxes.shape, (self.model_tester.batch_size, 10, 4))
                self.assertEqual(outputs.loss.shape, ())

    def test_model_get_set_embeddings(self):
        """The input embeddings are a module, not a table of tokens; there are no output embeddings."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), nn.Module)
            self.assertIsNone(model.get_output_embeddings())

    def test_hidden_states_output(self):
        """The hidden states are the stem's map and then every stage's."""
        for model_class in self.all_model_classes:
            for outputs in self._run_both_ways(model_class, "output_hidden_states"):
                shapes = [tuple(feature_map.shape) for feature_map in outputs.hidden_states]
                self.assertEqual(shapes, self.model_tester.expected_feature_maps())

    def test_attention_outputs(self):
        """The attentions are one tensor of probabilities per layer, and the last of the outputs."""
        for model_class in self.all_model_classes:
            for outputs in self._run_both_ways(model_class, "output_attentions"):
                shapes = [tuple(attention.shape) for attention in outputs.attentions]
                self.assertEqual(shapes, self.model_tester.expected_attentions())
                for attention in outputs.attentions:
                    torch.testing.assert_close(attention.sum(dim=-1), torch.ones_like(attention[..., 0]))
                self.assertEqual(list(outputs)[-1], "attentions")

    def test_batching_equivalence(self, *arguments: Any, **keywords: Any):
        """Detectors are left out, whose empty places are minus infinity; `test_detection.py` compares batches."""
        others = tuple(model_class for model_class in self.all_model_classes if model_class not in DETECTORS)
        with mock.patch.object(self, "all_model_classes", others):
            super().test_batching_equivalence(*arguments, **keywords)

    def _run(self, model_class: type, labels: Any = None, **changes: Any) -> ModelOutput:
        """Return a model's output for the tiny configuration with some changes."""
        config = self.model_tester.get_config()
        for name, value in changes.items():
            setattr(config, name, value)
        inputs = {"pixel_values": self.model_tester.get_pixel_values(config.num_channels)}
        if labels is not None:
            inputs["labels"] = labels
        with torch.no_grad():
            return model_class(config).to(torch_device).eval()(**inputs)

    def _run_both_ways(self, model_class: type, flag: str) -> tuple[ModelOutput, ModelOutput]:
        """Return a model's output with a flag as an argument, and then with the flag in the model's configuration."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = model_class._from_config(config, attn_implementation="eager").to(torch_device).eval()
        with torch.no_grad():
            by_argument = model(**inputs, **{flag: True})
            setattr(model.config, flag, True)
            return by_argument, model(**inputs)


class CrossFormerPlusPlusModelTest(CrossFormerModelTest):
    """The same tests with cooling layers, a group size per layer and padding."""

    settings = TINY_CROSSFORMER_PLUS_PLUS


class CrossFormerBackboneTest(backbone_common.BackboneTesterMixin, unittest.TestCase):
    """The common tests of backbones."""

    all_model_classes = (CrossFormerBackbone,)
    config_class = CrossFormerConfig

    def setUp(self):
        """Make the tester that the common tests use."""
        self.model_tester = CrossFormerModelTester(self, TINY_CROSSFORMER)
