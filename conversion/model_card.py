"""The README.md of a converted folder, which the Hub shows as its model card."""

from transformers import PreTrainedModel

from conversion.targets import BACKBONE, CLASSIFIER, Target, crossformer_config
from conversion.variants import Variant


DATA_SETS = {
    "image-classification": "imagenet-1k",
    "semantic-segmentation": "scene_parse_150",
    "object-detection": "detection-datasets/coco",
    "instance-segmentation": "detection-datasets/coco",
}
# What the Hub calls a task, where it is called something else here.
HUB_TASKS = {"semantic-segmentation": "image-segmentation", "instance-segmentation": "image-segmentation"}

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


SEGMENT = """```python
{register}from transformers import pipeline

segmenter = pipeline("image-segmentation", "PATH_OR_REPOSITORY"{trust})
for segment in segmenter("image.jpg"):
    print(segment["label"], segment["mask"].size)
```"""

DETECT = {
    "object-detection": """```python
from transformers import pipeline

detector = pipeline("object-detection", "PATH_OR_REPOSITORY", trust_remote_code=True)
print(detector("image.jpg"))
```""",
    "instance-segmentation": """```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForInstanceSegmentation

processor = AutoImageProcessor.from_pretrained("PATH_OR_REPOSITORY", trust_remote_code=True)
model = AutoModelForInstanceSegmentation.from_pretrained("PATH_OR_REPOSITORY", trust_remote_code=True).eval()
image = Image.open("image.jpg")
with torch.no_grad():
    outputs = model(**processor(image, return_tensors="pt"))
result = processor.post_process_instance_segmentation(outputs, target_sizes=[image.size[::-1]])[0]
for segment in result["segments_info"]:
    print(model.config.id2label[segment["label_id"]], segment["score"], segment["box"])
```""",
}

REGISTER = "import crossformer_hf  # registers CrossFormer; pip install crossformer-hf\n"
TRUST = ", trust_remote_code=True"


def model_card(model: PreTrainedModel, target: Target, variant: Variant | None) -> str:
    """Say what the folder holds, where it comes from and how to use it."""
    title = variant.name if variant else "CrossFormer"
    sections = [
        _front_matter(target, variant),
        f"# {title}, converted for Transformers",
        PAPERS,
        _origin(variant, target),
        f"The attention groups follow `{crossformer_config(model.config).grouping}`, as they did in training.",
        _usage(target),
        "`conversion_report.json` says what became of every weight of the original file.",
    ]
    return "\n\n".join(sections) + "\n"


def _usage(target: Target) -> str:
    if target is BACKBONE:
        return FEATURE_MAPS
    if target is CLASSIFIER:
        return CLASSIFY
    if target.task in DETECT:
        return DETECT[target.task]
    if target.brings_code:
        return SEGMENT.format(register="", trust=TRUST)
    return SEGMENT.format(register=REGISTER, trust="")


def _front_matter(target: Target, variant: Variant | None) -> str:
    lines = ["library_name: transformers"]
    lines += ["license: mit"] if variant and variant.is_released else []
    lines += [f"pipeline_tag: {HUB_TASKS.get(target.task, target.task)}"]
    lines += ["datasets:", f"- {DATA_SETS[target.task]}"] if variant and target.task in DATA_SETS else []
    lines += ["tags:", "- crossformer", "- vision"]
    return "\n".join(["---", *lines, "---"])


def _origin(variant: Variant | None, target: Target) -> str:
    if variant is None:
        return "The weights were converted from a checkpoint of the original code."
    part = "the backbone of a checkpoint" if target is BACKBONE else "a checkpoint"
    given = f"The weights were converted from {part} that was given as `{variant.name}`."
    if not variant.is_released:
        return f"{given} The authors published its configuration, but no weights and no result."
    return (
        f"{given} The authors released that one at {variant.address}, under the MIT licence of [their code]"
        f"(https://github.com/cheerss/CrossFormer). Its published result is {variant.result} ({variant.metric}), "
        "which was not measured again here."
    )
