"""Where a benchmark runs."""

import os
import platform
from pathlib import Path

import torch
import transformers

from benchmarks.errors import BenchmarkError
from crossformer_hf.version import __version__


def choose_device(name: str | None) -> torch.device:
    """The named device, or CUDA where it is, else the CPU.

    Raises:
        BenchmarkError: There is no such device.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BenchmarkError(f"--device is {name}, but it must be cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise BenchmarkError(f"--device is {name}, but it must be cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BenchmarkError(f"--device is {name}, but torch finds no such device here; give cpu")
    return device


def describe(device: torch.device) -> dict:
    """What a reader must know of the machine to make sense of its times."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "tf32_products": torch.backends.cuda.matmul.allow_tf32 if device.type == "cuda" else None,
        "transformers": transformers.__version__,
        "crossformer_hf": __version__,
    }


def cpu_model() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def wait_for(device: torch.device) -> None:
    """Return when the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
