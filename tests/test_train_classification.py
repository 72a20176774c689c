"""Training from scratch does what it says: it learns, saves, is tested on every image once, and loses nothing."""

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import train_classification
from accelerate import Accelerator, checkpointing
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from PIL import Image
from safetensors.torch import load_file
from support import checkpoints, publishing
from support.classification_recipe import Learner, RecipeArguments
from support.classification_training import ClassifierTraining
from support.errors import InputError
from torch.nn.functional import cross_entropy
from transformers import AutoImageProcessor, AutoModelForImageClassification, BertConfig, SwinConfig, pipeline

from crossformer_hf import preset_config


ROOT = Path(__file__).parents[1]
SIZE = 32
NAMES = ["red", "green", "blue"]
TINY = {"patch_sizes": [4, 8], "embed_dim": 16, "num_heads": [1, 1, 2], "depths": [1, 1, 1]}
TINY_SWIN = {"image_size": 32, "patch_size": 4, "window_size": 4}
TINY_SWIN |= {"embed_dim": 16, "num_heads": [1, 2], "depths": [1, 1]}
SHORT = "--recipe small_images --per_device_train_batch_size 8 --num_train_epochs 2 --logging_steps 1".split()
# All that is random, and steps that are divided.
VARIED = ["--augmentation", "imagenet", "--mixup", "0.8", "--cutmix", "1.0", "--ema_decay", "0.9"]
VARIED += "--gradient_accumulation_steps 2 --checkpointing_steps 3 --logging_steps 2 --config_overrides".split()
VARIED += [json.dumps({**TINY, "drop_path_rate": 0.3, "hidden_dropout_prob": 0.1})]


def write_images(folder: Path, per_class: int, seed: int) -> None:
    """Noise with more of one colour; the class is which."""
    generator = np.random.default_rng(seed)
    for channel, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 120, (SIZE, SIZE, 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Folder with 66 images to train on and 27 held out."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", per_class=22, seed=0)
    write_images(folder / "validation", per_class=9, seed=1)
    return folder


def flags_for(output, images, *flags) -> list[str]:
    data = ["--train_dir", str(images / "train"), "--validation_dir", str(images / "validation")]
    return [*SHORT, *data, "--output_dir", str(output), "--config_overrides", json.dumps(TINY), *map(str, flags)]


def train(output, images, *flags) -> int:
    """Run the command in this process, as if it were a new one; return its exit status."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return train_classification.main(flags_for(output, images, *flags))


def records(output) -> list[dict]:
    """The log, without what depends on the machine."""
    lines = (output / "training_log.jsonl").read_text().splitlines()
    speed = "images_per_second"
    return [{name: value for name, value in json.loads(line).items() if name != speed} for line in lines]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_run(output, expected):
    """All losses, norms and scores, and the final weights, to the last bit."""
    assert records(output) == records(expected)
    for name, weight in weights(output).items():
        assert torch.equal(weight, weights(expected)[name]), name


def error_line(capsys) -> str:
    """The one line that says what is wrong."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    lines = [line for line in re.split(r"[\r\n]", text) if "error:" in line]
    assert len(lines) == 1, text
    return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images) -> Path:
    """Folder that a short run wrote."""
    output = tmp_path_factory.mktemp("runs") / "tiny"
    assert train(output, images) == 0
    return output


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, images) -> Path:
    """Folder of a run with all that is random."""
    output = tmp_path_factory.mktemp("runs") / "varied"
    assert train(output, images, *VARIED) == 0
    return output


# What it writes


def test_learns_and_says_so(trained):
    results = json.loads((trained / "all_results.json").read_text())
    assert results["eval_accuracy"] == 1.0 and results["step"] == 16
    losses = [record["loss"] for record in records(trained) if "loss" in record]
    assert len(losses) == 16 and losses[-1] < 0.8 * losses[0]
    assert not list(trained.glob(".*"))


def test_scores_are_those_of_the_saved_model_on_each_image_once(trained, images):
    """27 images in batches of 128, and in batches of 8, the last of which has 3."""
    model = AutoModelForImageClassification.from_pretrained(trained).eval()
    processor = AutoImageProcessor.from_pretrained(trained, backend="pil")
    files = sorted((images / "validation").glob("*/*.png"))
    labels = torch.tensor([model.config.label2id[file.parent.name] for file in files])
    with torch.no_grad():
        logits = model(**processor([Image.open(file) for file in files], return_tensors="pt")).logits
    scores = json.loads((trained / "all_results.json").read_text())
    assert scores["eval_images"] == len(files) == 27
    assert scores["eval_loss"] == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
    assert scores["eval_accuracy"] == (logits.argmax(1) == labels).float().mean().item()
    assert scores["eval_top5_accuracy"] == 1.0


def test_uneven_batches_do_not_change_the_scores(trained, images, tmp_path):
    assert train(tmp_path / "run", images, "--per_device_eval_batch_size", 8) == 0
    expected = json.loads((trained / "all_results.json").read_text())
    assert json.loads((tmp_path / "run" / "all_results.json").read_text()) == pytest.approx(expected)


def test_pipeline_runs_the_saved_folder(trained, images):
    answers = pipeline("image-classification", str(trained))(str(images / "validation" / "blue" / "0.png"))
    assert answers[0]["label"] == "blue"


def test_card_holds_the_scores(trained):
    card = ModelCard.load(trained / "README.md")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    scores = json.loads((trained / "all_results.json").read_text())
    assert results["accuracy"] == scores["eval_accuracy"] and results["cross_entropy"] == scores["eval_loss"]
    assert card.data.pipeline_tag == "image-classification"
    assert "import crossformer_hf" in card.text and str(trained.parent) not in card.text
    assert Image.open(trained / "training_curves.png").width > 1000


@pytest.mark.parametrize(
    "flags",
    [
        ["--config_overrides", json.dumps({**TINY, "patch_sizes": [4], "merge_sizes": [[2], [2]]})],
        ["--config_overrides", json.dumps({**TINY, "intervals": [1, 1, 1]})],
        ["--preset", "crossformer-pp-32px", "--channels_last"],
        ["--mixed_precision", "bf16"],
        ["--model_type", "swin", "--config_overrides", json.dumps(TINY_SWIN)],
        ["--config_name", "FOLDER", "--config_overrides", "{}", "--image_size", "64"],
        ["--streaming", "--num_warmup_steps", "1", "--shuffle_buffer_size", "20"],
        ["--dataloader_num_workers", "1", "--max_grad_norm", "0"],
    ],
)
def test_other_models_and_settings(flags, images, tmp_path):
    preset_config("crossformer-64px", **{**TINY, "embed_dim": 32}).save_pretrained(tmp_path / "config")
    flags = [str(tmp_path / "config") if flag == "FOLDER" else flag for flag in flags]
    assert train(tmp_path / "run", images, *flags, "--max_train_steps", "2") == 0
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.id2label == dict(enumerate(sorted(NAMES)))
    assert model.config.model_type == ("swin" if "swin" in flags else "crossformer")
    assert json.loads((tmp_path / "run" / "all_results.json").read_text())["eval_images"] == 27


def test_swin_does_not_decay_its_tables_of_biases():
    model = AutoModelForImageClassification.from_config(SwinConfig(**TINY_SWIN))
    optimizer = train_classification.build_optimizer(model, train_classification.RecipeArguments())
    free = {id(weight) for group in optimizer.param_groups if not group["weight_decay"] for weight in group["params"]}
    tables = {name: id(weight) in free for name, weight in model.named_parameters() if "bias_table" in name}
    assert tables and all(tables.values())


def test_average_of_the_weights_is_what_is_saved(uninterrupted):
    newest = max(uninterrupted.glob("checkpoint-*"), key=checkpoints.checkpoint_step)
    average = torch.load(newest / "custom_checkpoint_2.pkl")
    saved, latest = weights(uninterrupted), load_file(newest / "model.safetensors")
    assert all(torch.equal(saved[name], average[f"module.{name}"]) for name in saved)
    assert not torch.equal(saved["classifier.weight"], latest["classifier.weight"])


def test_trackers_get_what_is_measured(images, tmp_path):
    pytest.importorskip("tensorboard")
    flags = ["--with_tracking", "--report_to", "tensorboard", "--max_train_steps", 2]
    assert train(tmp_path / "run", images, *flags) == 0
    assert list((tmp_path / "run" / "train_classification").rglob("events.out.tfevents.*"))


# Losing nothing


def kill() -> None:
    """End this process at once: nothing is cleaned up or flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step(monkeypatch, number: int) -> None:
    """Die before the `number`-th batch."""
    train_batch, batches = Learner.train_batch, []

    def counted(self, *arguments):
        batches.append(None)
        return kill() if len(batches) == number else train_batch(self, *arguments)

    monkeypatch.setattr(Learner, "train_batch", counted)


def kill_while_saving(monkeypatch, number: int) -> None:
    """Die when the `number`-th checkpoint has half of its weights and nothing else."""
    save_state, saves = Accelerator.save_state, []

    def half(self, folder):
        saves.append(None)
        save_state(self, folder)
        if len(saves) == number:
            file = Path(folder) / "model.safetensors"
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            (Path(folder) / "optimizer.bin").unlink()
            kill()

    monkeypatch.setattr(Accelerator, "save_state", half)


def kill_before_naming(monkeypatch, number: int) -> None:
    """Die when the `number`-th checkpoint is whole but has no name yet."""
    finish, finished = checkpoints.finish_checkpoint, []

    def last_moment(unfinished, target):
        finished.append(None)
        return kill() if len(finished) == number else finish(unfinished, target)

    monkeypatch.setattr(checkpoints, "finish_checkpoint", last_moment)


def kill_in_evaluation(monkeypatch, number: int) -> None:
    """Die before the `number`-th evaluation."""
    evaluations = []

    def counted(self):
        evaluations.append(None)
        return kill() if len(evaluations) == number else evaluate(self)

    evaluate = ClassifierTraining.evaluate
    monkeypatch.setattr(ClassifierTraining, "evaluate", counted)


def run_killed(monkeypatch, prepare, number: int, output, images, *flags) -> None:
    """Run in a copy of this process, which dies where `prepare` says."""

    def action():
        prepare(monkeypatch, number)
        train(output, images, *flags)

    process = multiprocessing.get_context("fork").Process(target=action)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


# 8 batches and 4 updates in each of two epochs; checkpoints after 3, 4, 6 and 8 updates.
@pytest.mark.parametrize(
    ("prepare", "number"),
    [
        (kill_in_step, 1),  # before any checkpoint
        (kill_in_step, 8),  # in the middle of an update
        (kill_in_step, 11),  # in the second epoch, before there is a checkpoint in it
        (kill_in_step, 15),  # in the second epoch, from a checkpoint in its middle
        (kill_while_saving, 1),
        (kill_while_saving, 3),
        (kill_before_naming, 2),
        (kill_before_naming, 4),
    ],
)
def test_killed_run_goes_on_to_the_same_losses(prepare, number, uninterrupted, images, tmp_path, monkeypatch):
    run_killed(monkeypatch, prepare, number, tmp_path / "run", images, *VARIED)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert train(tmp_path / "run", images, *VARIED) == 0
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("number", [1, 2])
def test_killed_between_a_checkpoint_and_the_test_of_its_epoch(number, images, tmp_path, monkeypatch):
    flags = ["--checkpointing_steps", 4]
    assert train(tmp_path / "whole", images, *flags) == 0
    run_killed(monkeypatch, kill_in_evaluation, number, tmp_path / "run", images, *flags)
    assert train(tmp_path / "run", images, *flags) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert (tmp_path / "run" / "README.md").exists()


def copy_of(run: Path, output: Path) -> Path:
    """A run's folder without its model, as if it had been killed at the end."""
    shutil.copytree(run, output)
    for file in ("model.safetensors", "config.json", "all_results.json"):
        (output / file).unlink()
    return output


def flip_a_bit(checkpoint):
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (checkpoint / "model.safetensors").write_bytes(content)


def cut_a_file(checkpoint):
    (checkpoint / "optimizer.bin").write_bytes((checkpoint / "optimizer.bin").read_bytes()[:1000])


def lose_a_file(checkpoint):
    (checkpoint / "random_states_0.pkl").unlink()


def lose_the_digests(checkpoint):
    (checkpoint / "digests.json").unlink()


@pytest.mark.parametrize("damage", [flip_a_bit, cut_a_file, lose_a_file, lose_the_digests])
def test_damaged_checkpoint_is_passed_over(damage, uninterrupted, images, tmp_path, capsys):
    output = copy_of(uninterrupted, tmp_path / "run")
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-8"}
    damage(output / "checkpoint-8")
    assert train(output, images, *VARIED) == 0
    captured = capsys.readouterr()
    assert "checkpoint-8 is passed over" in captured.err and "checkpoint-6" in captured.out
    assert_same_run(output, uninterrupted)
    assert checkpoints.damage_of(output / "checkpoint-8") is None


def test_named_checkpoint(uninterrupted, images, tmp_path, capsys):
    output = copy_of(uninterrupted, tmp_path / "run")
    flags = [*VARIED, "--resume_from_checkpoint", output / "checkpoint-6"]
    lose_a_file(output / "checkpoint-8")
    assert train(output, images, *flags) == 0
    assert_same_run(output, uninterrupted)
    lose_a_file(output / "checkpoint-6")
    assert train(output, images, *flags) == 1
    assert "random_states_0.pkl changed" in error_line(capsys)


def test_finished_run_is_not_trained_further(trained, images, tmp_path, monkeypatch):
    output = copy_of(trained, tmp_path / "run")
    monkeypatch.delattr(Learner, "train_batch")
    assert train(output, images) == 0
    assert_same_run(output, trained)


def test_full_disk_is_one_line_and_the_last_checkpoint_stays(uninterrupted, images, tmp_path, capsys, monkeypatch):
    save = checkpointing.save

    def full(content, path, **options):
        if "checkpoint-4" in str(path) and "optimizer" in str(path):
            Path(path).write_bytes(b"begun")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(content, path, **options)

    monkeypatch.setattr(checkpointing, "save", full)
    output = tmp_path / "run"
    assert train(output, images, *VARIED) == 1
    line = error_line(capsys)
    assert "checkpoint-4 could not be written" in line and "No space left on device" in line and "make room" in line
    assert [path.name for path in output.glob("*checkpoint-*")] == ["checkpoint-3"]
    assert checkpoints.damage_of(output / "checkpoint-3") is None
    monkeypatch.undo()
    assert train(output, images, *VARIED) == 0
    assert_same_run(output, uninterrupted)


def test_really_full_disk(uninterrupted, images, tmp_path, capsys):
    """Room for the checkpoint after 3 updates, but not for the one after 4."""
    size = sum(path.stat().st_size for path in (uninterrupted / "checkpoint-6").iterdir())
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(1.5 * size)}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        assert train(disk / "run", images, *VARIED) == 1
        assert "checkpoint-4 could not be written" in error_line(capsys)
        assert [path.name for path in (disk / "run").glob("*checkpoint-*")] == ["checkpoint-3"]
        assert checkpoints.damage_of(disk / "run" / "checkpoint-3") is None
        assert subprocess.run(["mount", "-o", f"remount,size={10 * size}", str(disk)]).returncode == 0
        assert train(disk / "run", images, *VARIED) == 0
        assert_same_run(disk / "run", uninterrupted)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_only_some_checkpoints_are_kept(images, tmp_path):
    flags = ["--checkpointing_steps", 1, "--checkpoints_total_limit", 3, "--max_train_steps", 5]
    assert train(tmp_path / "run", images, *flags) == 0
    assert {path.name for path in (tmp_path / "run").glob("*checkpoint-*")} == {f"checkpoint-{n}" for n in (3, 4, 5)}


def test_does_not_go_on_with_another_run(trained, images, capsys):
    assert train(trained, images, "--learning_rate", "0.5") == 1
    line = error_line(capsys)
    assert "`learning_rate` is 0.5" in line and "started with 0.002" in line and "--overwrite_output_dir" in line


def run_for(seconds: float, output, flags) -> bool:
    """Run the command as users do and kill it so long after its first step; return whether it ended before."""
    command = [sys.executable, str(ROOT / "examples" / "train_classification.py"), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    log, started = output / "training_log.jsonl", time.time()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (log.exists() and log.stat().st_mtime > started):
        time.sleep(0.01)
    try:
        assert process.wait(timeout=seconds) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


@pytest.mark.slow
def test_killed_at_any_time_again_and_again(images, tmp_path):
    """A checkpoint after each step: much of the time goes into saving."""
    flags = [*VARIED, "--num_train_epochs", 15, "--checkpointing_steps", 1, "--logging_steps", 1]
    assert train(tmp_path / "whole", images, *flags) == 0
    times = np.random.default_rng(0).uniform(0.1, 3, size=30)
    ends = (run_for(seconds, tmp_path / "run", flags_for(tmp_path / "run", images, *flags)) for seconds in times)
    assert next(number for number, ended in enumerate(ends) if ended) >= 2
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# The Hub


@pytest.fixture
def hub(monkeypatch):
    """Record what is asked of the Hub; `failure` is raised by the upload."""
    asked = SimpleNamespace(calls=[], failure=None)

    class StandInApi:
        def create_repo(self, repo_id, **options):
            asked.calls.append(("create_repo", repo_id, options))
            return SimpleNamespace(repo_id=f"someone/{repo_id}")

        def upload_folder(self, **options):
            asked.calls.append(("upload_folder", options.pop("repo_id"), options))
            if asked.failure:
                raise asked.failure

    monkeypatch.setattr(publishing, "HfApi", StandInApi)
    monkeypatch.setattr(publishing, "get_token", lambda: "a token")
    return asked


def test_push_to_hub(hub, trained, images, tmp_path, capsys):
    output = shutil.copytree(trained, tmp_path / "tiny")
    assert train(output, images, "--push_to_hub", "--hub_private_repo") == 0
    assert [call[:2] for call in hub.calls] == [("create_repo", "tiny"), ("upload_folder", "someone/tiny")]
    assert hub.calls[0][2] == {"private": True, "exist_ok": True}
    options = hub.calls[1][2]
    assert options["folder_path"] == output and "model.safetensors" not in options["allow_patterns"]
    uploaded = {path.name for pattern in options["allow_patterns"] for path in output.glob(pattern)}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= uploaded
    assert not any("checkpoint" in name for name in uploaded)
    assert "uploaded to https://huggingface.co/someone/tiny" in capsys.readouterr().err


def test_refused_upload_is_one_line(hub, trained, images, tmp_path, capsys):
    output = shutil.copytree(trained, tmp_path / "tiny")
    hub.failure = HFValidationError("no such name")
    assert train(output, images, "--push_to_hub", "--hub_model_id", "a b") == 1
    assert "could not be uploaded (no such name)" in error_line(capsys)


def test_upload_needs_a_token_before_training(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(publishing, "get_token", lambda: None)
    assert train(tmp_path / "run", images, "--push_to_hub") == 1
    assert "hf auth login" in error_line(capsys)
    assert not (tmp_path / "run" / "training_log.jsonl").exists()


# The command


BAD_ARGUMENTS = [
    (["--preset", "resnet"], "resnet"),
    (["--preset", "crossformer-32px", "--model_type", "swin"], "--preset and --model_type"),
    (["--model_type", "nothing"], "nothing"),
    (["--config_name", "./nowhere"], "./nowhere"),
    (["--config_name", "BERT"], "gives no classifier"),
    (["--config_overrides", '{"depths": 3}'], "--config_overrides"),
    (["--config_overrides", '{"depth": [1]}'], "no field depth"),
    (["--config_overrides", "{"], "--config_overrides {"),
    (["--per_device_train_batch_size", "7", "--mixup", "0.8"], "--per_device_train_batch_size is 7"),
    (["--per_device_train_batch_size", "100"], "--per_device_train_batch_size is 100"),
    (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size is 0"),
    (["--learning_rate", "0"], "--learning_rate is 0"),
    (["--learning_rate", "1e30"], "the loss is nan"),
    (["--label_smoothing", "2"], "--label_smoothing is 2"),
    (["--mixed_precision", "fp32"], "--mixed_precision is fp32"),
    (["--checkpointing_steps", "often"], "--checkpointing_steps is often"),
    (["--checkpoints_total_limit", "0"], "--checkpoints_total_limit is 0"),
    (["--resume_from_checkpoint", "nowhere"], "--resume_from_checkpoint is nowhere"),
    (["--with_tracking", "--report_to", "paper"], "--report_to"),
    (["--streaming"], "--max_train_steps"),
    (["--train_dir", "nowhere"], "nowhere"),
    (["--recipe", "swin"], "swin"),
    (["--no_such_flag"], "--no_such_flag"),
]


@pytest.mark.parametrize(("flags", "fragment"), BAD_ARGUMENTS)
def test_bad_arguments(flags, fragment, images, tmp_path, capsys):
    BertConfig().save_pretrained(tmp_path / "bert")
    flags = [str(tmp_path / "bert") if flag == "BERT" else flag for flag in flags]
    try:
        status = train(tmp_path / "run", images, *flags)
    except SystemExit as leaving:
        status = leaving.code
    assert status in (1, 2)
    assert fragment in error_line(capsys)


def test_fsdp_on_a_cpu_is_refused(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert train(tmp_path / "run", images) == 1
    assert "FSDP is configured" in error_line(capsys)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [({"optimizer": "nadamuon"}, "give adamw"), ({"ema_decay": 0.9}, "are not averaged: leave it out")],
)
def test_what_needs_whole_weights_is_refused_with_sharded_ones(options, fragment):
    recipe, sharding = RecipeArguments(mixup=0, cutmix=0, **options), SimpleNamespace(distributed_type="FSDP")
    with pytest.raises(InputError, match=fragment):
        train_classification.check_settings(recipe, train_classification.RunArguments(), sharding)


def test_broken_image_is_named(images, tmp_path, capsys):
    folder = shutil.copytree(images, tmp_path / "images")
    (folder / "train" / "red" / "3.png").write_text("hello")
    assert train(tmp_path / "run", folder) == 1
    assert "3.png" in error_line(capsys)
    assert train(tmp_path / "run", folder, "--overwrite_output_dir", "--skip_broken_images") == 0


def test_help(capsys):
    with pytest.raises(SystemExit) as leaving:
        train_classification.main(["--help"])
    assert leaving.value.code == 0
    assert "--resume_from_checkpoint" in capsys.readouterr().out


def test_missing_package_is_one_line():
    code = "import runpy, sys; sys.modules['accelerate'] = None; runpy.run_path('examples/train_classification.py')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1 and "`accelerate" in result.stderr


@pytest.mark.slow
def test_compiled(trained, images, tmp_path):
    """A compiled model learns nearly the same, and what is saved is no compiled one."""
    assert train(tmp_path / "run", images, "--compile") == 0
    for compiled, usual in zip(records(tmp_path / "run"), records(trained), strict=True):
        assert compiled.get("loss", 0) == pytest.approx(usual.get("loss", 0), rel=1e-2)
    assert weights(tmp_path / "run").keys() == weights(trained).keys()
