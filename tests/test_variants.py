"""The released checkpoints: what each is, and that its configuration is the one it was trained with."""

import pytest
import torch
from golden import read_case

from conversion.porting import empty_model
from conversion.targets import CLASSIFIER
from conversion.variants import VARIANTS, variant_config, variant_table
from crossformer_hf import PRESETS


CLASSIFIERS = [f"crossformer-{size}" for size in ("t", "s", "b", "l", "pp-s", "pp-b", "pp-l", "pp-h")]
DENSE = [
    *(f"{head}-crossformer-{size}" for head in ("retinanet", "mask-rcnn") for size in "sb"),
    *(f"{head}-crossformer-{size}" for head in ("fpn", "upernet") for size in "sbl"),
]
PLUS_PLUS = [f"{head}-crossformer-pp-{size}" for head in ("retinanet", "mask-rcnn", "fpn", "upernet") for size in "sb"]


def test_names():
    assert list(VARIANTS) == CLASSIFIERS + DENSE + PLUS_PLUS
    assert all(variant.preset in PRESETS for variant in VARIANTS.values())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_have_fixed_groups(name):
    variant = VARIANTS[name]
    assert variant.is_classifier and variant.task == "image-classification"
    assert variant_config(variant).grouping == "fixed_group"


@pytest.mark.parametrize("name", DENSE)
def test_detectors_and_segmentors_have_fixed_intervals(name):
    assert not VARIANTS[name].is_classifier
    config = variant_config(VARIANTS[name])
    assert config.grouping == "fixed_interval"
    large = name in ("fpn-crossformer-s", "fpn-crossformer-l")
    assert config.group_sizes == ([14, 14, 7, 7] if large else [7, 7, 7, 7])
    assert config.intervals == ([16, 8, 2, 1] if large else [8, 4, 2, 1])


@pytest.mark.parametrize("name", PLUS_PLUS)
def test_detectors_and_segmentors_of_plus_plus_have_the_groups_of_the_first(name):
    variant = VARIANTS[name]
    assert not variant.is_released and variant.result is None
    config = variant_config(variant)
    assert config.grouping == "fixed_group" and config.use_cooling_layer
    assert config.group_sizes == [7, 7, 7, 7] and config.intervals == [8, 4, 2, 1]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_parameters_are_as_many_as_in_the_original(name):
    original = sum(torch.Size(shape).numel() for _, shape in read_case(f"classify-{name}-224")["parameters"])
    config = variant_config(VARIANTS[name])
    config.num_labels = 1000
    assert sum(parameter.numel() for parameter in empty_model(CLASSIFIER.model_class, config).parameters()) == original


def test_addresses():
    on_drive = [variant for variant in VARIANTS.values() if variant.google_drive]
    assert [variant.name for variant in VARIANTS.values() if not variant.google_drive] == (CLASSIFIERS[4:] + PLUS_PLUS)
    assert len({variant.google_drive for variant in on_drive}) == len(on_drive)
    assert all(len(variant.google_drive) == 33 for variant in on_drive)
    assert VARIANTS["crossformer-pp-b"].address.endswith("(key crsf)")


def test_table_has_a_line_for_each():
    lines = variant_table().splitlines()
    assert len(lines) == 1 + len(VARIANTS)
    for line, variant in zip(lines[1:], VARIANTS.values(), strict=True):
        for word in (variant.name, variant.task, variant.published, variant.grouping, variant.address):
            assert word in line
