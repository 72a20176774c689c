"""What a trained classifier's folder holds beside its weights: scores, a curve, a model card; and its upload."""

import json
import os
from pathlib import Path

from accelerate import DistributedType
from huggingface_hub import EvalResult, HfApi, ModelCardData, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from .checkpoints import writing
from .classification_recipe import Learner
from .errors import InputError
from .training_log import LOG_FILE


RESULTS_FILE, CARD_FILE, CURVES_FILE = "all_results.json", "README.md", "training_curves.png"
UPLOADED = ["config.json", "*.safetensors", "*.safetensors.index.json", "preprocessor_config.json"]
UPLOADED += [LOG_FILE, RESULTS_FILE, CARD_FILE, CURVES_FILE]
METRICS = {"eval_accuracy": "accuracy", "eval_top5_accuracy": "top-5 accuracy", "eval_loss": "cross entropy"}

CARD = """
# {title}

A {architecture} with {parameters:,} parameters, trained from random weights for {steps:,} steps of {batch:,} images on
{dataset}.

| held-out images | top-1 accuracy | top-5 accuracy | cross entropy |
|---|---|---|---|
| {eval_images:,} | {eval_accuracy:.2%} | {eval_top5_accuracy:.2%} | {eval_loss:.4f} |

![Losses and accuracy over the steps]({curves})

```python
{register}from transformers import pipeline

classifier = pipeline("image-classification", "PATH_OR_REPOSITORY")
print(classifier("image.jpg"))
```

## Training

Made by `train_classification.py` of crossformer-hf with these settings:

```json
{settings}
```
"""


def save_classifier(learner: Learner, processor, output: Path) -> None:
    """Write the model, or its moving average, and its image processor. All processes must call it."""
    accelerator = learner.accelerator
    sharded = accelerator.distributed_type == DistributedType.FSDP
    weights = accelerator.get_state_dict(learner.model) if sharded else None
    model = learner.ema.module if learner.ema else accelerator.unwrap_model(learner.model, keep_torch_compile=False)
    if not accelerator.is_main_process:
        return
    unfinished = output / ".model.unfinished"
    with writing(output):
        model.save_pretrained(unfinished, state_dict=weights)
        processor.save_pretrained(unfinished)
        for file in unfinished.iterdir():
            os.replace(file, output / file.name)
        unfinished.rmdir()


def write_card(output: Path, model, dataset: str, batch: int, scores: dict, settings: dict) -> None:
    """Write a model card that holds the scores in its metadata.

    Args:
        output: The model's folder.
        model: The model.
        dataset: Name of the data set, or folder of the training images.
        batch: Images for each update of the weights.
        scores: The last record of the held-out images' scores.
        settings: What it was trained with.
    """
    name = Path(dataset).name
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagefolder" if Path(dataset).is_dir() else dataset,
            dataset_name=name,
            metric_type=metric.replace(" ", "_"),
            metric_name=metric,
            metric_value=scores[key],
        )
        for key, metric in METRICS.items()
    ]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", "vision", model.config.model_type],
        metrics=["accuracy"],
        model_name=output.resolve().name,
        eval_results=results,
    )
    body = CARD.format(
        title=output.resolve().name,
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        steps=scores["step"],
        batch=batch,
        dataset=name,
        curves=CURVES_FILE,
        register="import crossformer_hf\n" if model.config.model_type == "crossformer" else "",
        settings=json.dumps(settings, indent=2),
        **{key: scores[key] for key in (*METRICS, "eval_images")},
    )
    (output / CARD_FILE).write_text(f"---\n{metadata.to_yaml()}\n---\n{body}")


def check_token() -> None:
    """Require a token of the Hub.

    Raises:
        InputError: There is none.
    """
    if get_token() is None:
        raise InputError(
            "--push_to_hub is given, but there is no Hugging Face token on this machine: run `hf auth login` first"
        )


def upload(output: Path, repository: str | None, private: bool) -> str:
    """Upload the model with its card; return the address.

    Args:
        output: The model's folder.
        repository: Its name on the Hub; that of the folder unless given.
        private: Whether it is private if it is made.

    Raises:
        InputError: The Hub refused, or cannot be reached.
    """
    api = HfApi()
    try:
        repository = api.create_repo(
            repository or output.resolve().name, private=private or None, exist_ok=True
        ).repo_id
        api.upload_folder(
            repo_id=repository,
            folder_path=output,
            allow_patterns=UPLOADED,
            commit_message="Upload a trained classifier",
        )
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{output} could not be uploaded ({reason[:300]}): the model is there; the same command tries again"
        ) from error
    return f"https://huggingface.co/{repository}"
