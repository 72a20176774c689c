"""Training from scratch takes the original's steps: its learning rates, weight decay, gradient norms and losses."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from golden import image_for, model_for, read_case
from support.classification_recipe import Learner, RecipeArguments, build_mixing, build_optimizer, build_schedule
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn

from conversion.key_mapping import rename


CASES = ["train-micro", "train-micro-pp"]


def recipe_for(case: dict) -> RecipeArguments:
    """The recipe's defaults, with the length of the case; it has plain labels."""
    schedule = case["schedule"]
    return RecipeArguments(
        num_train_epochs=schedule["epochs"],
        warmup_epochs=schedule["warmup_epochs"],
        label_smoothing=0.0,
        mixup=0.0,
        cutmix=0.0,
    )


def learner_for(case: dict) -> Learner:
    """What the script trains with, in float64."""
    recipe, steps = recipe_for(case), case["schedule"]["steps_per_epoch"]
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    model = model_for(case, division=np.float64).double().train()
    model, optimizer = accelerator.prepare(model, build_optimizer(model, recipe))
    schedule = build_schedule(optimizer, recipe, steps, steps * recipe.num_train_epochs)
    return Learner(accelerator, model, optimizer, schedule, recipe, model.config.num_labels)


def test_the_recipe_is_the_original_one():
    recipe, case = RecipeArguments(), read_case("train-micro")
    optimizer, schedule = case["optimizer"], case["schedule"]
    assert type(build_optimizer(nn.Linear(2, 2), recipe)) is torch.optim.AdamW
    assert (recipe.learning_rate, recipe.adam_epsilon) == (optimizer["lr"], optimizer["eps"])
    assert [recipe.adam_beta1, recipe.adam_beta2] == optimizer["betas"]
    assert recipe.max_grad_norm == optimizer["clip_grad_norm"]
    assert (recipe.warmup_learning_rate, recipe.min_learning_rate) == (schedule["warmup_lr"], schedule["min_lr"])
    assert (recipe.num_train_epochs, recipe.warmup_epochs, recipe.weight_decay) == (300, 20, 0.05)
    assert (recipe.mixup, recipe.cutmix, recipe.mixup_switch_prob, recipe.label_smoothing) == (0.8, 1.0, 0.5, 0.1)


@pytest.mark.parametrize("name", CASES)
def test_weight_decay(name):
    case = read_case(name)
    model = model_for(case)
    names = {id(parameter): key.removeprefix("crossformer.") for key, parameter in model.named_parameters()}
    groups = {
        group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]}
        for group in build_optimizer(model, RecipeArguments()).param_groups
    }
    expected = {
        group["weight_decay"]: {rename(key) for key in group["parameters"]} for group in case["weight_decay_groups"]
    }
    assert groups == expected
    assert sum(map(len, groups.values())) == len(names)


@pytest.mark.parametrize("name", CASES)
def test_learning_rates(name):
    case = read_case(name)
    recipe, steps = recipe_for(case), case["schedule"]["steps_per_epoch"]
    optimizer = build_optimizer(nn.Linear(2, 2), recipe)
    schedule = build_schedule(optimizer, recipe, steps, steps * recipe.num_train_epochs)
    rates = []
    for step in range(steps * recipe.num_train_epochs):
        rates.append([group["lr"] for group in optimizer.param_groups])
        schedule.step_update(step)
    np.testing.assert_allclose(rates, np.array(case["learning_rates"])[:, None].repeat(2, 1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", [CASES[0], pytest.param(CASES[1], marks=pytest.mark.slow)])
def test_steps(name):
    case = read_case(name)
    learner = learner_for(case)
    batches = [image_for(case["image_shape"], seed).double() for seed in case["step_image_seeds"]]
    rates, losses, norms = [], [], []
    for step in range(len(case["losses"])):
        rates.append(learner.optimizer.param_groups[0]["lr"])
        loss, norm = learner.train_batch(batches[step % len(batches)].clone(), torch.tensor(case["labels"]))
        losses.append(loss.item())
        norms.append(norm.item())
    np.testing.assert_allclose(rates, case["learning_rates"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(losses, case["losses"], rtol=1e-6)
    np.testing.assert_allclose(norms, case["gradient_norms"], rtol=1e-6)


class Scores(nn.Module):
    """Gives each image the scores that its first channel holds."""

    def forward(self, pixel_values):
        return type("Output", (), {"logits": pixel_values[:, 0, 0]})


def test_mixed_targets_cost_what_timms_soft_targets_do():
    """Smoothing after mixing is mixing after smoothing."""
    recipe = RecipeArguments()
    images, labels = torch.randn(8, 3, 16, 5, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5
    learner = Learner(Accelerator(cpu=True), Scores(), None, None, recipe, 5, build_mixing(recipe, num_labels=5))
    np.random.seed(0)
    loss = learner.loss(images.clone(), labels)
    np.random.seed(0)
    timm_mixing = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=5)
    mixed, targets = timm_mixing(images.clone(), labels)
    torch.testing.assert_close(loss, SoftTargetCrossEntropy()(mixed[:, 0, 0], targets))
    assert not torch.equal(mixed, images)
