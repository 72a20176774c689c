"""The checkpoints that the original authors released, and those that their configurations train, as data.

Addresses and results are those of the tables in the README files of github.com/cheerss/CrossFormer; nothing here was
measured again. Several addresses serve Baidu only, and two checkpoints share one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from crossformer_hf import CrossFormerConfig


TOP_1 = "% top-1, ImageNet-1k at 224"
BOX_AP = "box AP, COCO 2017, 1x"
BOX_AND_MASK_AP = "box / mask AP, COCO 2017, 1x"
MIOU_80K = "mIoU, ADE20K, 80k iterations"
MIOU_160K = "mIoU, ADE20K, 160k iterations"

# What a whole detector's or segmentor's checkpoint holds beside its backbone.
RETINANET = frozenset({"neck", "bbox_head"})
MASK_RCNN = frozenset({"neck", "rpn_head", "roi_head"})
SEMANTIC_FPN = frozenset({"neck", "decode_head"})
UPERNET = frozenset({"decode_head", "auxiliary_head"})

# Segmentors were trained on crops of this size, in pixels.
CROP = MappingProxyType({"image_size": 512})
# The 2021 configurations of Semantic FPN S and L, but not B, have larger groups than every other.
LARGE_GROUPS = MappingProxyType({**CROP, "group_sizes": [14, 14, 7, 7], "intervals": [16, 8, 2, 1]})
# The configurations of CrossFormer++ detectors and segmentors give its stages the groups of the first CrossFormer.
PLUS_PLUS_GROUPS = MappingProxyType({"group_sizes": [7, 7, 7, 7], "intervals": [8, 4, 2, 1]})


@dataclass(frozen=True)
class Variant:
    """A released checkpoint, or one that a configuration of the original trains.

    Attributes:
        name: What `--variant` takes.
        preset: Its architecture, a name in `crossformer_hf.PRESETS`.
        task: What the whole checkpoint is for.
        result: The published result, if there is one.
        metric: What a result counts, and on which data.
        grouping: The one it was trained with; with any other, its results are wrong at most image sizes.
        google_drive: Its file id there, if it was published there.
        baidu: Its address there, if it was released.
        baidu_key: The word that Baidu asks for.
        overrides: Fields of the configuration in which it differs from the preset.
        parts: The parts of the checkpoint beside the backbone; empty for a classifier.
    """

    name: str
    preset: str
    task: str
    result: str | None
    metric: str
    grouping: str
    google_drive: str | None = None
    baidu: str | None = None
    baidu_key: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    parts: frozenset[str] = frozenset()

    @property
    def is_classifier(self) -> bool:
        """Whether it was released with a classification head."""
        return not self.parts

    @property
    def is_released(self) -> bool:
        """Whether the authors published its weights."""
        return self.baidu is not None

    @property
    def published(self) -> str:
        """The published result and what it counts."""
        return f"{self.result} {self.metric}" if self.result else "none"

    @property
    def address(self) -> str:
        """Where a browser finds it: on Google Drive if it is there, else on Baidu."""
        if not self.is_released:
            return "not released"
        if self.google_drive:
            return f"https://drive.google.com/file/d/{self.google_drive}/view"
        return f"{self.baidu} (key {self.baidu_key})"


def _classifier(preset: str, top_1: str, drive: str | None, baidu: str, key: str) -> Variant:
    """A classifier, from the `main` branch or agreeing with it."""
    address = f"https://pan.baidu.com/s/{baidu}"
    return Variant(preset, preset, "image-classification", top_1, TOP_1, "fixed_group", drive, address, key)


def _dense(
    head: str,
    size: str,
    task: str,
    result: str,
    metric: str,
    parts: frozenset,
    overrides: Mapping,
    drive: str,
    baidu: str,
    key: str,
) -> Variant:
    """A released detector or segmentor, all of which come from the 2021 code."""
    preset = f"crossformer-{size}"
    address = f"https://pan.baidu.com/s/{baidu}"
    name = f"{head}-{preset}"
    return Variant(name, preset, task, result, metric, "fixed_interval", drive, address, key, overrides, parts)


def _retinanet(size: str, result: str, *address: str) -> Variant:
    return _dense("retinanet", size, "object-detection", result, BOX_AP, RETINANET, {}, *address)


def _mask_rcnn(size: str, result: str, *address: str) -> Variant:
    return _dense("mask-rcnn", size, "instance-segmentation", result, BOX_AND_MASK_AP, MASK_RCNN, {}, *address)


def _semantic_fpn(size: str, result: str, *address: str) -> Variant:
    overrides = CROP if size == "b" else LARGE_GROUPS
    return _dense("fpn", size, "semantic-segmentation", result, MIOU_80K, SEMANTIC_FPN, overrides, *address)


def _upernet(size: str, result: str, *address: str) -> Variant:
    return _dense("upernet", size, "semantic-segmentation", result, MIOU_160K, UPERNET, CROP, *address)


def _plus_plus(head: str, size: str, task: str, metric: str, parts: frozenset, overrides: Mapping) -> Variant:
    """A detector or segmentor with CrossFormer++ as the `main` branch trains it, whose weights were not released."""
    preset = f"crossformer-pp-{size}"
    name = f"{head}-{preset}"
    return Variant(name, preset, task, None, metric, "fixed_group", overrides=overrides, parts=parts)


_RELEASED = (
    _classifier("crossformer-t", "81.5", "1YSkU9enn-ITyrbxLH13zNcBYvWSEidfq", "1M45YXZgVvp6Ew9DO8UhdlA", "nkju"),
    _classifier("crossformer-s", "82.5", "1RAkigsgr33va0RZ85S2Shs2BhXYcS6U8", "1Xf4MXfb_soCnJFBeNDmoQQ", "fgqj"),
    _classifier("crossformer-b", "83.4", "1bK8biVCi17nz_nkt7rBfio_kywUpllSU", "1f5dH__UGDXb-HoOPHT5p0A", "7md9"),
    _classifier("crossformer-l", "84.0", "1zRWByVW_KIZ87NgaBkDIm60DAsGJErdG", "1YJLeHy_cxLBrZLklQBCA_A", "cc89"),
    _classifier("crossformer-pp-s", "83.2", None, "1smc_kRoogd0Ig5vfqwuGTA?pwd=crsf", "crsf"),
    _classifier("crossformer-pp-b", "84.2", None, "13XVP0ebtNcyRMmkl11ALYg?pwd=crsf", "crsf"),
    _classifier("crossformer-pp-l", "84.7", None, "1xtPh-ndcOxRM7fPYYxIIRg?pwd=crsf", "crsf"),
    _classifier("crossformer-pp-h", "84.9", None, "1xtPh-ndcOxRM7fPYYxIIRg?pwd=crsf", "crsf"),
    _retinanet("s", "44.4", "1OEEottS4fYGVZcPZG6WuBlKMK0tZLPZW", "1Ckrk3Z1uA65ve43_hL3ZFg", "ift3"),
    _retinanet("b", "46.2", "1TOuLLf_S4Ixo6COvaHQAocACR4NKKnGz", "1ESE7i1JpVjxZmB5ZTgXA5w", "hsd5"),
    _mask_rcnn("s", "45.4 / 41.4", "1qgO3-wnsJQw9Nj304AOj-TjVyadPPtvf", "1ytk95p-rjqI3UNEHaYqKKA", "4omu"),
    _mask_rcnn("b", "47.2 / 42.7", "1urkCa8Inss9CL1G1OgM4tWR5PSf6Ofn4", "1N_EGRLBuIXgQh6J0Oyh00g", "kjf4"),
    _semantic_fpn("s", "46.4", "1I-zpGG5rvkTtrTUnOF8Fx11yeb6pXGYi", "14K3gJS3UcnEZNwhTWHdsFg", "sn5h"),
    _semantic_fpn("b", "48.0", "1EjAnRc8Sau0un1ymqDVhFebHPeBIjukK", "1eCYENrLZsxjAQKW3eAQeUA", "joi5"),
    _semantic_fpn("l", "49.1", "12WS9lX9yR5skxdt3N2HE3b2EaDSMwUMY", "150b8-v1StaMHACIaM0hZVA", "6v5d"),
    _upernet("s", "47.6", "1VKu4D6oxYdO1VVILLMhOQy8oCxKGH5gx", "1MLcAOiJ22AFKUa6_t1psOQ", "wesb"),
    _upernet("b", "49.7", "1B8VTNeidrzlfsOkQUKgmX4m_UfCIm58i", "1311pBQluwJGiVdWY1WE16Q", "j061"),
    _upernet("l", "50.4", "1I9ph5MeCwlTF2PNCkIYMFXYsdywp9nU1", "1Yu8QB42hcbKNGQ46Wx_NaQ", "17ks"),
)
_TRAINABLE = tuple(
    _plus_plus(head, size, *rest)
    for head, *rest in (
        ("retinanet", "object-detection", BOX_AP, RETINANET, PLUS_PLUS_GROUPS),
        ("mask-rcnn", "instance-segmentation", BOX_AND_MASK_AP, MASK_RCNN, PLUS_PLUS_GROUPS),
        ("fpn", "semantic-segmentation", MIOU_80K, SEMANTIC_FPN, {**CROP, **PLUS_PLUS_GROUPS}),
        ("upernet", "semantic-segmentation", MIOU_160K, UPERNET, {**CROP, **PLUS_PLUS_GROUPS}),
    )
    for size in ("s", "b")
)
VARIANTS: Mapping[str, Variant] = MappingProxyType({variant.name: variant for variant in _RELEASED + _TRAINABLE})


def variant_config(variant: Variant) -> "CrossFormerConfig":
    """Configuration of a released checkpoint: its architecture, and the grouping that it was trained with.

    Example:
    ```python
    >>> from conversion.variants import VARIANTS, variant_config

    >>> variant_config(VARIANTS["fpn-crossformer-s"]).group_sizes
    [14, 14, 7, 7]

    ```
    """
    from crossformer_hf import preset_config  # takes seconds, which the table above does not need

    return preset_config(variant.preset, grouping=variant.grouping, **variant.overrides)


def variant_table() -> str:
    """Every variant, one a line under a heading, in columns."""
    rows = [("variant", "task", "published result", "grouping", "address")]
    rows += [(v.name, v.task, v.published, v.grouping, v.address) for v in VARIANTS.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
