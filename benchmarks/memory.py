"""Peak memory of one run, beside weights and images."""

import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.cases import Case
from benchmarks.machine import wait_for
from benchmarks.workload import Workload


STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


def peak_bytes(case: Case, device: torch.device) -> int:
    """Bytes that the first run of a case takes at most, on top of what was there before it."""
    if device.type == "cuda":
        return cuda_peak(Workload(case, device), device)
    threads = torch.get_num_threads()
    # A process of its own: what another case left behind would hide the peak.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(cpu_peak, case, threads).result()


def cuda_peak(workload: Workload, device: torch.device) -> int:
    """Peak of the CUDA allocator in one run, compiled beforehand."""
    workload.run()
    workload.model.zero_grad(set_to_none=True)
    wait_for(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    workload.run()
    wait_for(device)
    return torch.cuda.max_memory_allocated(device) - before


def cpu_peak(case: Case, threads: int) -> int:
    """Growth of this process's peak resident memory in one run."""
    torch.set_num_threads(threads)
    workload = Workload(case, torch.device("cpu"))
    before = reset_peak()
    workload.run()
    return peak_resident() - before


def reset_peak() -> int:
    """Where the system allows it, forget the peak that building the model left; return the peak."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        pass
    return peak_resident()


def peak_resident() -> int:
    """Largest resident memory of this process in bytes.

    Linux counts what the parent had, before the new program started, into `ru_maxrss`, but not into `VmHWM`.
    """
    try:
        lines = STATUS.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
