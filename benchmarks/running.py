"""From the command's arguments to tables, JSON and pictures."""

import argparse
import itertools
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.cases import COMPILED, Case, Comparison, parse_model
from benchmarks.comparing import Effort, Result, measure
from benchmarks.drawing import draw_growth, draw_ratios
from benchmarks.errors import BenchmarkError
from benchmarks.flops import model_costs
from benchmarks.machine import choose_device, describe
from benchmarks.memory import peak_bytes
from benchmarks.models import check_model, our_config
from benchmarks.presets import PRESETS
from benchmarks.reporting import cost_table, result_table, write_json
from conversion.command import ConversionError, explain
from conversion.original_code import branch_of


DEFAULT_MODELS = ["crossformer-s", "transformers:swin-t"]
Measured = list[tuple[Comparison, list[Result]]]


def run_benchmark(args: argparse.Namespace) -> int:
    """Do what the arguments of `benchmark.py` say; return 0, or 1 if something could not be measured.

    Raises:
        BenchmarkError: The arguments make no sense together, or here.
    """
    warnings.filterwarnings("ignore", message="torch.meshgrid")  # today's torch about the original code
    if args.threads:
        torch.set_num_threads(args.threads)
    base = Case("", task=args.task, grouping=args.grouping, checkouts=tuple(args.original))
    if args.flops:
        return print_costs(args, base)
    device = choose_device(args.device)
    comparisons = chosen_comparisons(args, base, device)
    check(comparisons)
    measured = measure_all(comparisons, device, args)
    if not measured:
        return 1
    draw(args, device, measured)
    print(f"Every time is in {args.json}, a picture in {args.picture}")
    return 0 if len(measured) == len(comparisons) else 1


def chosen_comparisons(args: argparse.Namespace, base: Case, device: torch.device) -> list[Comparison]:
    """What the arguments ask for.

    Raises:
        BenchmarkError: They make no sense together.
    """
    if args.preset is None:
        return growth_comparisons(args, base) if args.growth else grid_comparisons(args, base)
    if args.models:
        raise BenchmarkError(f"--preset {args.preset} has models of its own; leave out --models, or --preset")
    if args.preset == "gpu" and device.type != "cuda":
        raise BenchmarkError("--preset gpu needs CUDA, which is not here; give --preset cpu")
    return PRESETS[args.preset](base)


def grid_comparisons(args: argparse.Namespace, base: Case) -> list[Comparison]:
    """The models beside each other, at every size, batch size, dtype, mode and execution."""
    specs = args.models or DEFAULT_MODELS
    baseline = index_of_baseline(args.baseline, specs)
    settings = itertools.product(args.modes, args.sizes, args.batch_sizes, args.dtypes, args.execution)
    comparisons = []
    for mode, size, batch_size, dtype, execution in settings:
        compiled = execution == COMPILED
        setting = replace(base, mode=mode, size=size, batch_size=batch_size, dtype=dtype, compiled=compiled)
        title = " ".join((args.task, dtype, execution))
        comparisons.append(Comparison(title, [parse_model(spec, setting) for spec in specs], baseline))
    return comparisons


def growth_comparisons(args: argparse.Namespace, base: Case) -> list[Comparison]:
    """The models at every size with the first batch size, and at the first size with every batch size."""
    specs = args.models or DEFAULT_MODELS[:1]
    base = replace(base, mode=args.modes[0], dtype=args.dtypes[0], compiled=args.execution[0] == COMPILED)
    settings = {
        "growth with the area": [replace(base, size=size, batch_size=args.batch_sizes[0]) for size in args.sizes],
        "growth with the batch": [replace(base, size=args.sizes[0], batch_size=batch) for batch in args.batch_sizes],
    }
    return [
        Comparison(title, [parse_model(spec, setting) for spec in specs for setting in chosen])
        for title, chosen in settings.items()
    ]


def index_of_baseline(baseline: str | None, specs: list[str]) -> int:
    """Which of the models the others are compared with.

    Raises:
        BenchmarkError: It is none of them.
    """
    if baseline is not None and baseline not in specs:
        raise BenchmarkError(f"--baseline is {baseline}, but it must be one of --models: {', '.join(specs)}")
    return specs.index(baseline) if baseline else 0


def check(comparisons: list[Comparison]) -> None:
    """Refuse at once what would only fail after minutes.

    Raises:
        BenchmarkError: There is no such model, or no checkout of the original.
    """
    cases = [case for comparison in comparisons for case in comparison.cases]
    for checkout in cases[0].checkouts:
        branch_of(checkout)
    for case in cases:
        check_model(case)
        if case.implementation == "original" and not case.checkouts:
            raise BenchmarkError(
                f"original:{case.model} needs a checkout of the original code; give --original CHECKOUT"
            )


def measure_all(comparisons: list[Comparison], device: torch.device, args: argparse.Namespace) -> Measured:
    """Measure one comparison after the other, print and save each; one that cannot be measured is said and left."""
    effort = Effort(args.rounds, args.warmup, args.min_seconds, args.seed)
    machine = describe(device)
    print(caption_of(machine, device) + "\n", flush=True)
    measured: Measured = []
    for comparison in comparisons:
        try:
            results = measure_with_memory(comparison, device, effort, args.memory)
        except (ConversionError, torch.OutOfMemoryError) as error:
            say(f"not measured: {comparison.title}, {comparison.cases[0].setting}: {explain(error)}\n")
            continue
        measured.append((comparison, results))
        print(result_table(comparison, results), flush=True)
        write_json(args.json, machine, asdict(effort), measured)
    return measured


def measure_with_memory(
    comparison: Comparison, device: torch.device, effort: Effort, with_memory: bool
) -> list[Result]:
    """Measure the cases of one comparison, and their memory in a pass of its own if that is wanted."""
    results = measure(comparison, device, effort)
    for result in results if with_memory else ():
        result.peak_bytes = peak_bytes(result.case, device)
    return results


def say(message: str) -> None:
    """Print on stderr."""
    print(message, file=sys.stderr, flush=True)


def caption_of(machine: dict, device: torch.device) -> str:
    """The machine in one line."""
    threads = f", threads: {machine['threads']}" if device.type == "cpu" else ""
    return f"{machine['device']}{threads}, torch {machine['torch']}"


def draw(args: argparse.Namespace, device: torch.device, measured: Measured) -> None:
    """Draw what was measured."""
    caption, path = caption_of(describe(device), device), Path(args.picture)
    if args.growth and len(measured) == 2:
        (_, by_area), (_, by_batch) = measured
        draw_growth(path, by_area, by_batch, caption)
    else:
        draw_ratios(path, measured, caption)


def print_costs(args: argparse.Namespace, base: Case) -> int:
    """Print the work and memory of each part of our models.

    Raises:
        BenchmarkError: A model is not ours.
    """
    for spec, size in itertools.product(args.models or DEFAULT_MODELS[:1], args.sizes):
        case = replace(parse_model(spec, base), size=size)
        check_model(case)
        if case.implementation not in ("ours", "original"):
            raise BenchmarkError(f"--flops has a table for CrossFormer only; leave out {spec}")
        costs = model_costs(our_config(case), size, with_head=args.task == "classify")
        print(f"{case.model}, {size[0]} x {size[1]}, one image in float32\n{cost_table(costs)}\n")
    return 0
