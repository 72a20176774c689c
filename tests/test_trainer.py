"""The Trainer fine-tunes a converted checkpoint on other classes, saves it and resumes."""

import numpy as np
import pytest
import torch
from test_modeling import tiny_model
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation, Trainer, TrainingArguments

from crossformer_hf import CrossFormerForImageClassification


LABELS = ["dark", "bright"]


class Brightness(torch.utils.data.Dataset):
    """Noise around a low or a high mean; the class is which."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        label = index % 2
        pixel_values = torch.randn(3, 64, 48, generator=generator) + (1.0 if label else -1.0)
        return {"pixel_values": pixel_values, "labels": label}


def accuracy(prediction):
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


def trainer_for(converted, folder, **settings) -> Trainer:
    model = AutoModelForImageClassification.from_pretrained(
        converted,
        num_labels=2,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        ignore_mismatched_sizes=True,
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_train_epochs=3,
        learning_rate=1e-3,
        report_to="none",
        save_strategy="epoch",
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        **settings,
    )
    return Trainer(
        model=model, args=arguments, train_dataset=Brightness(), eval_dataset=Brightness(), compute_metrics=accuracy
    )


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"bf16": True}])
def test_fine_tuning_learns(converted, tmp_path, settings):
    trainer = trainer_for(converted, tmp_path, **settings)
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] == 1.0
    trainer.save_model(tmp_path / "final")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "final")
    assert loaded.config.id2label == dict(enumerate(LABELS))
    example = Brightness()[1]["pixel_values"][None]
    assert loaded(example).logits.argmax(-1).item() == 1


def test_resuming_ends_with_the_same_weights(converted, tmp_path):
    whole = trainer_for(converted, tmp_path)
    whole.train()
    resumed = trainer_for(converted, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    actual = dict(resumed.model.named_parameters())
    for name, expected in whole.model.named_parameters():
        torch.testing.assert_close(actual[name], expected, msg=name)


def weights_after_one_step(folder, **settings) -> dict[str, torch.Tensor]:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        **settings,
    )
    model = tiny_model(CrossFormerForImageClassification, drop_path_rate=0.0)
    Trainer(model=model, args=arguments, train_dataset=Brightness()).train()
    return dict(model.named_parameters())


def test_accumulated_gradients_are_those_of_the_larger_batch(tmp_path):
    """The Trainer leaves the division by the steps to models that seem to know of `num_items_in_batch`."""
    whole = weights_after_one_step(tmp_path, per_device_train_batch_size=4)
    halves = weights_after_one_step(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    for name, expected in whole.items():
        torch.testing.assert_close(halves[name], expected, rtol=1e-4, atol=1e-6, msg=name)


class Halves(torch.utils.data.Dataset):
    """Noise, darker on one side and brighter on the other; the class of a pixel is which. A border has none."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        labels = torch.zeros(64, 48, dtype=torch.long)
        labels[:, 24:] = 1
        labels = labels.flip(1) if index % 2 else labels
        pixel_values = 0.3 * torch.randn(3, 64, 48, generator=generator) + 2.0 * labels - 1.0
        labels[:4] = 255
        return {"pixel_values": pixel_values, "labels": labels}


def pixel_accuracy(prediction):
    logits = torch.nn.functional.interpolate(torch.from_numpy(prediction.predictions), size=(64, 48), mode="bilinear")
    has_class = prediction.label_ids != 255
    return {"accuracy": float((logits.argmax(1).numpy() == prediction.label_ids)[has_class].mean())}


def test_fine_tuning_a_segmentor_learns(converted, tmp_path):
    """It starts from a classifier's weights."""
    model = AutoModelForSemanticSegmentation.from_pretrained(
        converted, num_labels=2, id2label=dict(enumerate(LABELS)), fpn_hidden_size=32, decoder_hidden_size=16
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_train_epochs=8,
        learning_rate=2e-3,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=Halves(), eval_dataset=Halves(), compute_metrics=pixel_accuracy
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.95
    trainer.save_model(tmp_path / "final")
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "final")
    assert loaded.config.id2label == dict(enumerate(LABELS))
    example = Halves()[0]["pixel_values"][None]
    torch.testing.assert_close(loaded(example).logits, model.eval()(example).logits)
