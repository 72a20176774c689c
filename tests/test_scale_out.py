"""Training in several processes equals training in one: losses, scores and who writes; sharded models go anywhere."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import checkpoints
from test_train_classification import TINY, flags_for, images, records, train  # noqa: F401  (a fixture)
from transformers import AutoModelForImageClassification


ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "examples" / "train_classification.py")
CONFIGS = ROOT / "examples" / "accelerate_configs"
# Nothing that is random in each process by itself.
PLAIN = [
    "--augmentation",
    "light",
    "--optimizer",
    "adamw",
    "--config_overrides",
    json.dumps({**TINY, "drop_path_rate": 0.0}),
]
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(*command, **variables) -> subprocess.Popen:
    """Start a command on CPUs that sees this checkout."""
    settings = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        env={**os.environ, **settings, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes) -> str:
    """What all of them print; each must end well. None is left behind."""
    try:
        outputs = [process.communicate(timeout=1200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return "".join(outputs)


def launch(*flags, processes: int = 2, **variables) -> str:
    """Run the script in several processes on this machine."""
    launcher = ["torch.distributed.run", "--nproc_per_node", processes, "--master_port", free_port()]
    return finish(start(*launcher, SCRIPT, *flags, **variables))


def assert_nearly_same_run(output, expected, rel: float = 1e-6):
    """Losses and scores; norms of gradients add up rounding errors."""
    actual = records(output)
    assert len(actual) == len(records(expected))
    for one, other in zip(actual, records(expected), strict=True):
        norms = one.pop("gradient_norm", 0), other.pop("gradient_norm", 0)
        assert one == pytest.approx(other, rel=rel)
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, images):  # noqa: F811
    """Folder of a run in one process, with batches of 8."""
    output = tmp_path_factory.mktemp("runs") / "alone"
    assert train(output, images, *PLAIN) == 0
    return output


HALVES = ["--per_device_train_batch_size", 4, "--per_device_eval_batch_size", 5]


def test_two_processes_equal_one(alone, images, tmp_path):  # noqa: F811
    """The 27 held-out images come in batches of 5 + 5, and at last 5 + 2."""
    printed = launch(*flags_for(tmp_path / "run", images, *PLAIN, *HALVES))
    assert printed.count("held-out images are classified right") == 1
    assert_nearly_same_run(tmp_path / "run", alone)
    assert json.loads((tmp_path / "run" / "all_results.json").read_text())["eval_images"] == 27
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in alone.iterdir()}


def test_accelerate_launch_and_accumulated_gradients(alone, images, tmp_path):  # noqa: F811
    flags = flags_for(tmp_path / "run", images, *PLAIN, "--per_device_train_batch_size", 2)
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 1]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port()]
    finish(start(*launcher, SCRIPT, *flags, "--gradient_accumulation_steps", 2))
    assert_nearly_same_run(tmp_path / "run", alone)


def test_two_nodes_equal_one_process(alone, images, tmp_path):  # noqa: F811
    """Two launchers that find each other over the loopback address, as two machines over a network."""
    flags = flags_for(tmp_path / "run", images, *PLAIN, *HALVES)
    address = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{free_port()}", "--rdzv_id", "test"]
    node = ["torch.distributed.run", "--nnodes", 2, "--nproc_per_node", 1, *address, SCRIPT, *flags]
    printed = finish(start(*node), start(*node))
    assert printed.count("held-out images are classified right") == 1
    assert_nearly_same_run(tmp_path / "run", alone)


def test_streams_are_divided(images, tmp_path):  # noqa: F811
    flags = [*PLAIN, "--streaming", "--num_warmup_steps", 4, "--max_train_steps", 12, "--shuffle_buffer_size", 30]
    assert train(tmp_path / "alone", images, *flags) == 0
    launch(*flags_for(tmp_path / "run", images, *flags, *HALVES))
    assert_nearly_same_run(tmp_path / "run", tmp_path / "alone")


def test_interrupted_processes_go_on(images, tmp_path):  # noqa: F811
    """With mixup and drop path, which differ in each process."""
    flags = ["--mixup", 0.8, "--per_device_train_batch_size", 4, "--logging_steps", 2, "--checkpointing_steps", 3]
    launch(*flags_for(tmp_path / "whole", images, *flags))
    for path in [tmp_path / "run" / "checkpoint-15"]:
        path.parent.mkdir()
        path.symlink_to(tmp_path / "whole" / path.name)
    (tmp_path / "run" / "training_log.jsonl").write_text((tmp_path / "whole" / "training_log.jsonl").read_text())
    printed = launch(*flags_for(tmp_path / "run", images, *flags))
    assert "Going on from" in printed
    assert records(tmp_path / "run") == records(tmp_path / "whole")


# FSDP2


def launch_sharded(*flags, processes: int = 2) -> str:
    """Run the script with its model sharded as `fsdp2.yaml` says."""
    launcher = ["accelerate.commands.launch", "--config_file", CONFIGS / "fsdp2.yaml", "--mixed_precision", "no"]
    launcher += ["--num_processes", processes, "--main_process_port", free_port()]
    return finish(start(*launcher, ROOT / "tests" / "fsdp_on_cpu.py", SCRIPT, *flags))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, images):  # noqa: F811
    """Folder of a run with a sharded model."""
    output = tmp_path_factory.mktemp("runs") / "sharded"
    launch_sharded(*flags_for(output, images, *PLAIN, *HALVES, "--checkpointing_steps", 12))
    return output


def test_sharded_model_learns_the_same(sharded, alone):
    assert_nearly_same_run(sharded, alone, rel=1e-5)


def test_sharded_model_was_sharded(sharded):
    shards = list((sharded / "checkpoint-16").glob("pytorch_model_fsdp_0/*.distcp"))
    assert len(shards) == 2
    smaller = min(path.stat().st_size for path in shards)
    assert smaller > 0.3 * sum(path.stat().st_size for path in shards)


def test_saved_sharded_model_loads_in_one_process(sharded, alone):
    """It gives the same logits. Weights without influence differ: their gradients are rounding that AdamW enlarges."""
    pixel_values = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    actual, expected = (
        AutoModelForImageClassification.from_pretrained(folder).eval()(pixel_values).logits
        for folder in (sharded, alone)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_sharded_checkpoint_loads_in_one_process(sharded, images, tmp_path):  # noqa: F811
    """By PyTorch's own tool, which gathers the shards."""
    shards = sharded / "checkpoint-16" / "pytorch_model_fsdp_0"
    finish(start("torch.distributed.checkpoint.format_utils", "dcp_to_torch", shards, tmp_path / "weights.pt"))
    gathered, expected = torch.load(tmp_path / "weights.pt"), load_file(sharded / "model.safetensors")
    gathered = gathered.get("model", gathered)
    assert gathered.keys() == expected.keys()
    assert all(torch.equal(gathered[name], expected[name]) for name in expected)


def test_sharded_run_goes_on(sharded, images, tmp_path):  # noqa: F811
    output = tmp_path / "run"
    output.mkdir()
    (output / "checkpoint-12").symlink_to(sharded / "checkpoint-12")
    (output / "training_log.jsonl").write_text((sharded / "training_log.jsonl").read_text())
    assert checkpoints.damage_of(sharded / "checkpoint-12") is None
    printed = launch_sharded(*flags_for(output, images, *PLAIN, *HALVES, "--checkpointing_steps", 12))
    assert "Going on from" in printed
    assert_nearly_same_run(output, sharded)
