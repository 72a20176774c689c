"""The Trainer fine-tunes a converted checkpoint on other classes, saves it and resumes."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

import crossformer_hf  # noqa: F401  registers the Auto classes


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
