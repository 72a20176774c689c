"""What of a segmentor's checkpoint is ported, what is refused, and what the folder can be used for."""

import json

import pytest
import torch
from golden import DATA, config_for, image_for, read_case, tensor_for
from transformers import AutoModelForSemanticSegmentation, UperNetForSemanticSegmentation

from conversion import uploading
from conversion.checkpoint import read_checkpoint
from conversion.convert_crossformer import main
from conversion.uploading import check_folder
from crossformer_hf import CrossFormerBackbone, CrossFormerForSemanticSegmentation


BACKBONE = DATA / "checkpoint-pp-micro-mmdet-backbone.pth"
CHANNELS = [16, 32, 64, 128]
WIDTH, CLASSES = 24, 6


def convolution(name: str, in_channels: int, out_channels: int, size: int, norm: bool = True) -> dict:
    """Shapes of a `ConvModule` of mmcv: a convolution, then a batch norm or a bias."""
    shapes = {f"{name}.conv.weight": (out_channels, in_channels, size, size)}
    if not norm:
        return {**shapes, f"{name}.conv.bias": (out_channels,)}
    statistics = ("weight", "bias", "running_mean", "running_var")
    return {
        **shapes,
        **{f"{name}.bn.{statistic}": (out_channels,) for statistic in statistics},
        f"{name}.bn.num_batches_tracked": (),
    }


def classifier(part: str) -> dict:
    return {f"{part}.conv_seg.weight": (CLASSES, WIDTH, 1, 1), f"{part}.conv_seg.bias": (CLASSES,)}


def semantic_fpn() -> dict:
    """Shapes of mmsegmentation's FPN neck and head; the neck is `WIDTH` wide too."""
    shapes = classifier("decode_head")
    for level, channels in enumerate(CHANNELS):
        shapes |= convolution(f"neck.lateral_convs.{level}", channels, WIDTH, 1, norm=False)
        shapes |= convolution(f"neck.fpn_convs.{level}", WIDTH, WIDTH, 3, norm=False)
        for layer in range(max(level, 1)):
            shapes |= convolution(f"decode_head.scale_heads.{level}.{2 * layer}", WIDTH, WIDTH, 3)
    return shapes


def upernet() -> dict:
    """Shapes of mmsegmentation's UPerNet head and auxiliary head."""
    shapes = classifier("decode_head") | classifier("auxiliary_head")
    shapes |= convolution("auxiliary_head.convs.0", CHANNELS[2], WIDTH, 3)
    for scale in range(4):
        shapes |= convolution(f"decode_head.psp_modules.{scale}.1", CHANNELS[3], WIDTH, 1)
    for level in range(3):
        shapes |= convolution(f"decode_head.lateral_convs.{level}", CHANNELS[level], WIDTH, 1)
        shapes |= convolution(f"decode_head.fpn_convs.{level}", WIDTH, WIDTH, 3)
    shapes |= convolution("decode_head.bottleneck", CHANNELS[3] + 4 * WIDTH, WIDTH, 3)
    return shapes | convolution("decode_head.fpn_bottleneck", 4 * WIDTH, WIDTH, 3)


HEADS = {"fpn": semantic_fpn, "upernet": upernet}


def weights_of(head: str) -> dict[str, torch.Tensor]:
    """A small segmentor's weights, under the original's names."""
    backbone = read_checkpoint(BACKBONE).state_dict
    assert all(key.startswith("backbone.") for key in backbone)
    return {**backbone, **{key: tensor_for(key, shape) for key, shape in HEADS[head]().items()}}


@pytest.fixture
def convert(tmp_path):
    """Convert weights with the small architecture's configuration."""

    def convert(weights: dict, *options: str, **changes) -> int:
        torch.save({"state_dict": weights, "meta": {}}, tmp_path / "model.pth")
        config = config_for(read_case("checkpoint-pp-micro-main")).to_diff_dict()
        for field in ("id2label", "label2id"):
            config.pop(field, None)
        widths = {"fpn_hidden_size": WIDTH, "decoder_hidden_size": WIDTH}
        (tmp_path / "config.json").write_text(json.dumps({**config, **widths, **changes}))
        files = [str(tmp_path / "model.pth"), "--config", str(tmp_path / "config.json")]
        return main([*files, "--output", str(tmp_path / "model"), *map(str, options)])

    return convert


@pytest.fixture
def refusal(convert, tmp_path, capsys):
    """Convert weights; return the one line with which they are refused."""

    def refuse(weights: dict, *options: str, **changes) -> str:
        assert convert(weights, *options, **changes) == 1
        assert not (tmp_path / "model").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return refuse


@pytest.mark.parametrize("head", HEADS)
def test_a_segmentor_with_a_configuration_of_its_own(convert, tmp_path, head):
    assert convert(weights_of(head)) == 0
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model").eval()
    assert model.config.num_labels == CLASSES and model.config.id2label[0] == "LABEL_0"
    with torch.no_grad():
        logits = model(image_for((1, 3, 70, 90))).logits
    assert logits.shape == ((1, CLASSES, 18, 23) if head == "fpn" else (1, CLASSES, 70, 90))


def test_a_upernet_without_auxiliary_head_lacks_it(convert, tmp_path):
    weights = {key: tensor for key, tensor in weights_of("upernet").items() if not key.startswith("auxiliary_head.")}
    assert convert(weights) == 0
    model = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "model")
    assert model.auxiliary_head is None and not model.config.use_auxiliary_head


def test_labels(convert, tmp_path):
    names = [f"class {index}" for index in range(CLASSES)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert convert(weights_of("upernet"), "--labels", tmp_path / "names.txt") == 0
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == names
    assert json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())["do_reduce_labels"] is False


@pytest.mark.parametrize("head", HEADS)
def test_the_backbone_alone(convert, tmp_path, head):
    assert convert(weights_of(head), "--backbone-only") == 0
    backbone, loading = CrossFormerBackbone.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values())
    report = json.loads((tmp_path / "model" / "conversion_report.json").read_text())
    assert set(HEADS[head]()) <= report["dropped"].keys()
    with torch.no_grad():
        assert len(backbone.eval()(image_for((1, 3, 64, 64))).feature_maps) == 4


def test_a_segmentor_gives_its_backbone_later_too(convert, tmp_path):
    assert convert(weights_of("fpn")) == 0
    backbone, loading = CrossFormerBackbone.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values())
    segmentor = CrossFormerForSemanticSegmentation.from_pretrained(tmp_path / "model")
    own = segmentor.crossformer.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("head", "variant", "problem"),
    [
        ("fpn", "upernet-crossformer-s", "has decode_head, neck beside its backbone, but upernet-crossformer-s has"),
        ("upernet", "fpn-crossformer-pp-s", "has auxiliary_head, decode_head beside its backbone"),
        ("upernet", "crossformer-s", "is a classifier; give the variant that it is, or --backbone-only"),
        ("fpn", "retinanet-crossformer-s", "has decode_head, neck beside its backbone"),
    ],
)
def test_a_variant_with_another_head(tmp_path, capsys, head, variant, problem):
    torch.save(weights_of(head), tmp_path / "model.pth")
    assert main([str(tmp_path / "model.pth"), "--variant", variant, "--output", str(tmp_path / "model")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line


def test_weights_that_do_not_fit(refusal):
    weights = weights_of("fpn")
    assert "decode_head.classifier.weight" in refusal(without(weights, "decode_head.conv_seg.weight"))
    assert "neck.lateral_convs.0.conv.weight (24, 16, 1, 1) instead of (8, 16, 1, 1)" in refusal(
        weights, fpn_hidden_size=8
    )
    stranger = {**weights, "decode_head.scale_heads.0.1.conv.weight": torch.zeros(1)}
    assert "1 unexpected (decode_head.scale_heads.0.1.conv.weight)" in refusal(stranger)
    weights = weights_of("upernet")
    statistic = "auxiliary_head.convs.0.bn.running_mean"
    assert "1 missing (auxiliary_head.convs.0.batch_norm.running_mean)" in refusal(without(weights, statistic))
    assert "1 missing (decode_head.classifier.weight)" in refusal(without(weights, "decode_head.conv_seg.weight"))


def without(weights: dict, key: str) -> dict:
    assert key in weights
    return {name: tensor for name, tensor in weights.items() if name != key}


def test_a_statistic_that_is_not_finite(refusal):
    weights = weights_of("fpn")
    weights["decode_head.scale_heads.0.0.bn.running_var"][0] = float("nan")
    assert "decode_head.scale_heads.0.0.bn.running_var" in refusal(weights)


def test_weights_that_were_not_released_cannot_be_fetched(tmp_path, capsys):
    assert main(["--download", "--variant", "fpn-crossformer-pp-s", "--output", str(tmp_path / "model")]) == 1
    assert "were not released; give your own file" in capsys.readouterr().err


@pytest.mark.parametrize("head", HEADS)
def test_a_whole_folder_may_be_uploaded(convert, tmp_path, head):
    assert convert(weights_of(head)) == 0
    check_folder(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(uploading.ConversionError, match="is damaged"):
        check_folder(tmp_path / "model")
