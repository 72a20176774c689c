"""Measuring one comparison, and its results as plain data."""

from dataclasses import asdict, dataclass, field

import torch

from benchmarks.cases import Case, Comparison
from benchmarks.machine import wait_for
from benchmarks.matmul import PRODUCT, matrix_products
from benchmarks.measuring import RoundTimes, Spread, all_times, interleaved_times, quantile, speedups, spread
from benchmarks.workload import Workload, compute_dtype, relative_difference


RECOMPILE_LIMIT = 256


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: Rounds in which everything runs once.
        warmup: Runs of everything beforehand, which compile and fill caches.
        min_seconds: In a round, a case is repeated until this time is over.
        seed: For weights, images and the order within rounds.
    """

    rounds: int = 10
    warmup: int = 2
    min_seconds: float = 0.0
    seed: int = 0


@dataclass
class Result:
    """What was measured of a case.

    Attributes:
        case: What was measured.
        times: Seconds of every call, by round.
        flops: Useful FLOPs of one call.
        speedup: How many times as many images a second as the baseline.
        matmul_share: FLOPs per second as a part of those of a large matrix product in the same dtype.
        peak_share: The same of a product or a convolution, whichever is faster.
        difference: Of ours and the original's outputs, relative to the largest value; `None` where there is no pair.
        peak_bytes: Memory that a call takes beside weights and images, where it was measured.
    """

    case: Case
    times: RoundTimes
    flops: float
    speedup: Spread
    matmul_share: Spread
    peak_share: Spread
    difference: float | None = None
    peak_bytes: int | None = None
    latency: dict[str, float] = field(init=False)
    images_per_second: float = field(init=False)

    def __post_init__(self):
        """Derive percentiles of the latency in seconds, and the throughput."""
        calls = all_times(self.times)
        self.latency = {f"p{percent}": quantile(calls, percent / 100) for percent in (10, 50, 90)}
        self.images_per_second = self.case.batch_size / self.latency["p50"]

    def as_data(self) -> dict:
        """For JSON."""
        data = asdict(self)
        data["case"]["checkouts"] = len(self.case.checkouts)
        return {"name": self.case.name, "setting": self.case.setting, **data}


def measure(comparison: Comparison, device: torch.device, effort: Effort) -> list[Result]:
    """Measure the cases of one comparison.

    Raises:
        BenchmarkError: One of them cannot be measured.
    """
    forget_compiled()
    workloads = [Workload(case, device, effort.seed) for case in comparison.cases]
    differences = output_differences(workloads)
    products = {dtype: matrix_products(dtype, device) for dtype in {compute_dtype(case) for case in comparison.cases}}
    runs = {index: workload.run for index, workload in enumerate(workloads)}
    runs |= {(dtype, way): run for dtype, (ways, _) in products.items() for way, run in ways.items()}
    for run in runs.values():
        for _ in range(effort.warmup):
            run()
    times = interleaved_times(runs, effort.rounds, effort.seed, effort.min_seconds, lambda: wait_for(device))
    product_flops = {dtype: flops for dtype, (_, flops) in products.items()}
    flops = [workload.flops() for workload in workloads]
    return [
        result_of(index, comparison, times, flops[index], product_flops, differences[index])
        for index in range(len(workloads))
    ]


def result_of(
    index: int,
    comparison: Comparison,
    times: dict[int | tuple[torch.dtype, str], RoundTimes],
    flops: float,
    product_flops: dict[torch.dtype, int],
    difference: float | None,
) -> Result:
    """The result of one case, from the times of all cases, by index, and of the products, by dtype and way."""
    case, baseline = comparison.cases[index], comparison.cases[comparison.baseline]
    dtype = compute_dtype(case)
    shares = {
        key[1]: spread([ratio * flops / product_flops[dtype] for ratio in speedups(times[index], times[key])])
        for key in times
        if isinstance(key, tuple) and key[0] == dtype
    }
    peak_share = min(shares.values(), key=lambda share: share.median)
    images = case.batch_size / baseline.batch_size
    faster = [images * ratio for ratio in speedups(times[index], times[comparison.baseline])]
    return Result(case, times[index], flops, spread(faster), shares[PRODUCT], peak_share, difference)


def forget_compiled() -> None:
    """Let every comparison compile anew, as often as its sizes and layers need: past the limit, eager code runs."""
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT


def output_differences(workloads: list[Workload]) -> list[float | None]:
    """How far each of our models is from the original in the comparison, if there is one for the same images.

    Running every model once also finds those that cannot take such images.
    """
    outputs = [workload.outputs() for workload in workloads]
    references = {
        same_images(workload.case): output
        for workload, output in reversed(list(zip(workloads, outputs, strict=True)))  # the first one counts
        if workload.case.implementation == "original"
    }
    return [
        relative_difference(output, references[same_images(workload.case)])
        if workload.case.implementation == "ours" and same_images(workload.case) in references
        else None
        for workload, output in zip(workloads, outputs, strict=True)
    ]


def same_images(case: Case) -> tuple:
    """What two cases must share to compute the same, in whatever dtype."""
    return case.model, case.size, case.batch_size, case.task, case.grouping
