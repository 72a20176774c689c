"""Cross-scale embeddings: patches of several sizes with one centre, at any image size."""

import pytest
import torch
from torch import nn

from crossformer_hf import CrossFormerConfig
from crossformer_hf.modeling_crossformer import (
    CrossFormerCrossScaleEmbedding,
    CrossFormerDownsampling,
    CrossFormerEmbeddings,
)


def test_larger_kernels_get_fewer_channels():
    embedding = CrossFormerCrossScaleEmbedding(3, 96, [4, 8, 16, 32], stride=4)
    assert [projection.out_channels for projection in embedding.projections] == [48, 24, 12, 12]
    assert [projection.kernel_size for projection in embedding.projections] == [(4, 4), (8, 8), (16, 16), (32, 32)]


def test_a_single_kernel_gets_all_channels():
    embedding = CrossFormerCrossScaleEmbedding(3, 96, [4], stride=4)
    assert [projection.out_channels for projection in embedding.projections] == [96]


@pytest.mark.parametrize("kernel_size", [4, 8, 16])
def test_kernels_share_their_centres(kernel_size):
    embedding = CrossFormerCrossScaleEmbedding(1, 1, [kernel_size], stride=4)
    nn.init.ones_(embedding.projections[0].weight)
    nn.init.zeros_(embedding.projections[0].bias)
    image = torch.zeros(1, 1, 64, 64)
    token = (slice(None), slice(None), 8, 8)  # its patch of 4 x 4 pixels starts at pixel 32, so the centre is at 34
    reach = kernel_size // 2
    for pixel, expected in [(34 - reach, 1), (34 - reach - 1, 0), (33 + reach, 1), (34 + reach, 0)]:
        image.zero_()[..., pixel, 34] = 1
        assert embedding(image)[token].item() == expected


@pytest.mark.parametrize(("size", "tokens"), [(4, 1), (5, 2), (7, 2), (8, 2), (224, 56), (225, 57)])
def test_any_size_is_rounded_up(size, tokens):
    embedding = CrossFormerCrossScaleEmbedding(3, 16, [4, 8], stride=4)
    assert embedding(torch.zeros(1, 3, size, 8)).shape == (1, 16, tokens, 2)


def test_a_size_that_is_no_multiple_equals_the_padded_image():
    embedding = CrossFormerCrossScaleEmbedding(3, 16, [4, 8], stride=4)
    image = torch.randn(1, 3, 9, 6)
    assert torch.equal(embedding(image), embedding(nn.functional.pad(image, (0, 2, 0, 3))))


def test_first_embedding_normalises_after_and_later_ones_before():
    config = CrossFormerConfig()
    stem = CrossFormerEmbeddings(config)(10 * torch.randn(1, 3, 32, 32))
    torch.testing.assert_close(stem.mean(dim=1), torch.zeros(1, 8, 8), atol=1e-5, rtol=0)
    downsampling = CrossFormerDownsampling(config, 96, [2, 4])
    feature_map = torch.randn(1, 96, 8, 8)
    torch.testing.assert_close(downsampling(feature_map), downsampling(100 * feature_map), atol=1e-3, rtol=0)
    assert downsampling(feature_map).shape == (1, 192, 4, 4)


def test_patch_norm_is_optional():
    embeddings = CrossFormerEmbeddings(CrossFormerConfig(use_patch_norm=False))
    assert not any("norm" in name for name, _ in embeddings.named_parameters())


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ((1, 1, 32, 32), "(batch, 3, height, width)"),
        ((3, 32, 32), "(batch, 3, height, width)"),
        ((1, 3, 3, 32), "4 pi"),
    ],
)
def test_bad_images_are_refused(shape, rule):
    with pytest.raises(ValueError) as error:
        CrossFormerEmbeddings(CrossFormerConfig())(torch.zeros(shape))
    assert "`pixel_values`" in str(error.value)
    assert str(shape) in str(error.value)
    assert rule in str(error.value)
