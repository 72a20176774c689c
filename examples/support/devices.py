"""Where a model runs."""

import torch

from .errors import InputError


def choose_device(name: str | None) -> torch.device:
    """The named device, or the accelerator, or the CPU.

    Raises:
        InputError: There is no such device.
    """
    try:
        device = torch.device(name) if name else torch.accelerator.current_accelerator(check_available=True)
        return torch.empty(0, device=device or "cpu").device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device is {name}, which cannot be used here: give cpu, or leave it out") from error
