"""Tables for the screen and JSON for everything else."""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import Comparison
from benchmarks.comparing import Result
from benchmarks.flops import FLOPS_PER_MULTIPLY_ADD, Cost, total


MEBI = 2**20
HEADINGS = ("", "ms p10", "p50", "p90", "images/s", "GFLOP/s", "of matmul", "of peak", "times as fast (quartiles)")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be, the first at the left, the others at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def result_table(comparison: Comparison, results: list[Result]) -> str:
    """What was measured of one comparison."""
    with_memory = any(result.peak_bytes is not None for result in results)
    rows = [(*HEADINGS, "peak MiB") if with_memory else HEADINGS]
    names, setting = row_names(results)
    for name, result in zip(names, results, strict=True):
        memory = "" if result.peak_bytes is None else f"{result.peak_bytes / MEBI:.0f}"
        row = (name, *result_row(result))
        rows.append((*row, memory) if with_memory else row)
    lines = [f"{comparison.title}: {setting}" if setting else comparison.title, table(rows)]
    lines += [
        f"outputs of {result.case.name} differ from the original's by {result.difference:.1e} of the largest value"
        for result in results
        if result.difference is not None
    ]
    return "\n".join(lines + ([f"target: {comparison.target}"] if comparison.target else [])) + "\n"


def row_names(results: list[Result]) -> tuple[list[str], str]:
    """Names of the cases, and the setting that they share; if they share none, it is part of the names."""
    settings = {result.case.setting for result in results}
    if len(settings) == 1:
        return [result.case.name for result in results], settings.pop()
    return [f"{result.case.name}, {result.case.setting}" for result in results], ""


def result_row(result: Result) -> tuple[str, ...]:
    """The numbers of one line of the table."""
    milliseconds = [f"{1000 * seconds:.1f}" for seconds in result.latency.values()]
    rate = result.flops / result.latency["p50"] / 1e9
    shares = [f"{100 * share.median:.0f} %" for share in (result.matmul_share, result.peak_share)]
    return (
        *milliseconds,
        f"{result.images_per_second:.1f}",
        f"{rate:.0f}",
        *shares,
        str(result.speedup),
    )


def cost_table(costs: list[Cost], bytes_per_value: int = 4) -> str:
    """What each part of a model costs for one image."""
    everything = total(costs)
    rows = [("part", "GFLOPs", "share", "as published, G", "parameters MiB", "activations MiB")]
    for cost in [*costs, everything]:
        rows.append(
            (
                f"{cost.stage} {cost.part}".strip(),
                f"{FLOPS_PER_MULTIPLY_ADD * cost.multiply_adds / 1e9:.3f}",
                f"{100 * cost.multiply_adds / everything.multiply_adds:.1f} %",
                f"{cost.published / 1e9:.3f}",
                f"{bytes_per_value * cost.parameters / MEBI:.2f}",
                f"{bytes_per_value * cost.activations / MEBI:.2f}",
            )
        )
    return table(rows)


def write_json(path: Path, machine: dict, effort: dict, measured: list[tuple[Comparison, list[Result]]]) -> None:
    """Write the machine, how it was measured, and every result with its raw times in seconds."""
    comparisons = [
        {
            "title": comparison.title,
            "target": comparison.target,
            "baseline": comparison.baseline,
            "results": [result.as_data() for result in results],
        }
        for comparison, results in measured
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "effort": effort, "comparisons": comparisons}
    path.write_text(json.dumps(content, indent=1, default=str) + "\n")
