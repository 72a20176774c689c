"""Pictures of what was measured."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from benchmarks.cases import Comparison
from benchmarks.comparing import Result
from benchmarks.reporting import row_names


DOTS_PER_INCH = 120
WIDTH, BAR_HEIGHT, TITLE_HEIGHT = 9.0, 0.3, 0.75  # inches
TEXT_SIZE = 9
BAR, BASELINE, GUIDE = "#2b6cb0", "#9aa5b1", "#6b7280"
COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#4a5568")


def draw_ratios(path: Path, measured: list[tuple[Comparison, list[Result]]], caption: str) -> None:
    """Draw, for each comparison, how many times as fast as the baseline each case is, with quartiles."""
    heights = [TITLE_HEIGHT + BAR_HEIGHT * len(results) for _, results in measured]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.7), dpi=DOTS_PER_INCH, layout="constrained")
    grid = figure.subplots(len(measured), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})
    for (comparison, results), axes in zip(measured, grid[:, 0], strict=True):
        draw_bars(axes, comparison, results)
    grid[-1, 0].set_xlabel("times as fast as the grey bar: median and quartiles over the rounds", fontsize=TEXT_SIZE)
    figure.suptitle(caption, fontsize=TEXT_SIZE, color=GUIDE)
    save(figure, path)


def draw_bars(axes, comparison: Comparison, results: list[Result]) -> None:
    """One bar a case, the first at the top."""
    ratios = [result.speedup for result in results]
    positions = range(len(results))
    medians = [ratio.median for ratio in ratios]
    errors = [[ratio.median - ratio.lower for ratio in ratios], [ratio.upper - ratio.median for ratio in ratios]]
    colors = [BASELINE if index == comparison.baseline else BAR for index in positions]
    axes.barh(positions, medians, xerr=errors, color=colors, height=0.65, error_kw={"elinewidth": 1, "capsize": 3})
    for index, ratio in enumerate(ratios):
        axes.annotate(
            f"{ratio.median:.2f}", (ratio.upper, index), (5, 0), textcoords="offset points", va="center", fontsize=8
        )
    names, setting = row_names(results)
    axes.set_yticks(positions, names, fontsize=TEXT_SIZE)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.tick_params(labelsize=TEXT_SIZE)
    axes.axvline(1, color=GUIDE, linewidth=0.8, linestyle="--")
    axes.set_title(f"{comparison.title}: {setting}" if setting else comparison.title, fontsize=TEXT_SIZE, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def draw_growth(path: Path, by_area: Sequence[Result], by_batch: Sequence[Result], caption: str) -> None:
    """Draw the time for an image against the image's area, and against the batch size."""
    figure = Figure(figsize=(WIDTH, 4.4), dpi=DOTS_PER_INCH, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_area(left, by_area)
    draw_batch(right, by_batch)
    for axes in (left, right):
        axes.set_ylabel("milliseconds an image", fontsize=TEXT_SIZE)
        axes.tick_params(labelsize=TEXT_SIZE)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(fontsize=8, frameon=False)
    figure.suptitle(caption, fontsize=TEXT_SIZE, color=GUIDE)
    save(figure, path)


def draw_area(axes, results: Sequence[Result]) -> None:
    """The time for an image against its area, both logarithmic."""
    draw_lines(axes, results, lambda case: megapixels(case.size))
    draw_proportion(axes, results)
    axes.set(xscale="log", yscale="log")
    sizes = sorted({result.case.size for result in results}, key=megapixels)
    axes.set_xticks([megapixels(size) for size in sizes], [" x ".join(map(str, size)) for size in sizes], rotation=30)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("image size in pixels, placed by area", fontsize=TEXT_SIZE)
    axes.set_title(f"batch {results[0].case.batch_size}", fontsize=TEXT_SIZE)


def draw_batch(axes, results: Sequence[Result]) -> None:
    """The time for an image against the batch size."""
    draw_lines(axes, results, lambda case: case.batch_size)
    batches = sorted({result.case.batch_size for result in results})
    axes.set(xscale="log")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images in a batch", fontsize=TEXT_SIZE)
    axes.set_title(" x ".join(map(str, results[0].case.size)) + " pixels", fontsize=TEXT_SIZE)


def megapixels(size: tuple[int, int]) -> float:
    """Area of an image of `size` (height, width)."""
    return size[0] * size[1] / 1e6


def draw_lines(axes, results: Sequence[Result], position: Callable) -> None:
    """One line for each model, with bars from the 10th to the 90th percentile."""
    names = list(dict.fromkeys(result.case.name for result in results))
    for name, color in zip(names, [*COLORS] * len(names), strict=False):
        chosen = sorted((result for result in results if result.case.name == name), key=lambda r: position(r.case))
        milliseconds = [[1000 * r.latency[part] / r.case.batch_size for r in chosen] for part in ("p10", "p50", "p90")]
        low, middle, high = milliseconds
        errors = [
            [m - value for m, value in zip(middle, low, strict=True)],
            [value - m for m, value in zip(middle, high, strict=True)],
        ]
        places = [position(result.case) for result in chosen]
        axes.errorbar(places, middle, errors, label=name, color=color, marker="o", markersize=4, capsize=2)


def draw_proportion(axes, results: Sequence[Result]) -> None:
    """A line for times in proportion to the area, from the first model's smallest image."""
    of_first = [result for result in results if result.case.name == results[0].case.name]
    smallest = min(of_first, key=lambda result: megapixels(result.case.size))
    start = 1000 * smallest.latency["p50"] / smallest.case.batch_size
    areas = sorted({megapixels(result.case.size) for result in results})
    times = [start * area / areas[0] for area in areas]
    axes.plot(areas, times, color=GUIDE, linestyle="--", linewidth=0.8, label="in proportion to the area")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
