"""The README.md of a converted folder, which the Hub shows as its model card."""

from conversion.variants import Variant
from crossformer_hf import CrossFormerForImageClassification, CrossFormerPreTrainedModel


PAPERS = """CrossFormer ([arXiv 2108.00154](https://arxiv.org/abs/2108.00154)) and CrossFormer++
([arXiv 2303.06908](https://arxiv.org/abs/2303.06908)) are vision transformers with cross-scale attention, by Wenxiao
Wang and others. They are neither the time-series model nor the robotics policy of the same name."""

CLASSIFY = """```python
from transformers import pipeline

classifier = pipeline("image-classification", "PATH_OR_REPOSITORY", trust_remote_code=True)
print(classifier("image.jpg"))
```"""

FEATURE_MAPS = """```python
import torch
from crossformer_hf import CrossFormerBackbone

backbone = CrossFormerBackbone.from_pretrained("PATH_OR_REPOSITORY")
print([tuple(feature_map.shape) for feature_map in backbone(torch.zeros(1, 3, 480, 640)).feature_maps])
```

It needs `pip install crossformer-hf`; without it, `AutoBackbone.from_pretrained` takes a repository on the Hub and
`trust_remote_code=True`."""


def model_card(model: CrossFormerPreTrainedModel, variant: Variant | None) -> str:
    """Say what the folder holds, where it comes from and how to use it."""
    is_classifier = isinstance(model, CrossFormerForImageClassification)
    title = variant.name if variant else "CrossFormer"
    sections = [
        _front_matter(is_classifier, variant),
        f"# {title}, converted for Transformers",
        PAPERS,
        _origin(variant, is_classifier),
        f"The attention groups follow `{model.config.grouping}`, as they did in training.",
        CLASSIFY if is_classifier else FEATURE_MAPS,
        "`conversion_report.json` says what became of every weight of the original file.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(is_classifier: bool, variant: Variant | None) -> str:
    lines = ["library_name: transformers"]
    lines += ["license: mit"] if variant else []
    lines += ["pipeline_tag: image-classification" if is_classifier else "pipeline_tag: image-feature-extraction"]
    lines += ["datasets:", "- imagenet-1k"] if variant and is_classifier else []
    lines += ["tags:", "- crossformer", "- vision"]
    return "\n".join(["---", *lines, "---"])


def _origin(variant: Variant | None, is_classifier: bool) -> str:
    if variant is None:
        return "The weights were converted from a checkpoint of the original code."
    part = "a checkpoint" if is_classifier else "the backbone of a checkpoint"
    return (
        f"The weights were converted from {part} that was given as `{variant.name}`. The authors released that one at "
        f"{variant.address}, under the MIT licence of [their code](https://github.com/cheerss/CrossFormer). Its "
        f"published result is {variant.result} ({variant.metric}), which was not measured again here."
    )
