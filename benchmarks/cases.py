"""What is measured: cases, comparisons of them, and how the command line spells them."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.errors import BenchmarkError


IMPLEMENTATIONS = ("ours", "original", "transformers", "timm")
AUTOCAST = "autocast"
DTYPES = ("float32", "bfloat16", "float16", AUTOCAST)
COMPILED, EAGER = "compiled", "eager"
MODES = ("inference", "training")
TASKS = ("classify", "backbone")
SMALLEST_SIDE, LARGEST_SIDE = 4, 16384  # pixels


@dataclass(frozen=True)
class Case:
    """One thing that is measured.

    Attributes:
        model: Its name, such as `crossformer-s`.
        implementation: Whose code: one of `IMPLEMENTATIONS`.
        size: Height and width of the images in pixels.
        batch_size: Images at once.
        dtype: What weights and images are in; `autocast` is float32 weights under bfloat16 autocast.
        compiled: Whether `torch.compile` is applied.
        mode: `inference`, or `training`: forward, loss and backward.
        task: `classify`, or `backbone`: a feature map of every stage.
        grouping: CrossFormer's; the preset's unless given.
        checkouts: Where the original code is: a checkout of each branch that is at hand.
    """

    model: str
    implementation: str = "ours"
    size: tuple[int, int] = (224, 224)
    batch_size: int = 1
    dtype: str = "float32"
    compiled: bool = False
    mode: str = "inference"
    task: str = "classify"
    grouping: str | None = None
    checkouts: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """What it is, without size and batch: `ours crossformer-s bfloat16 compiled`."""
        words = [self.implementation, self.model, self.dtype, COMPILED if self.compiled else ""]
        return " ".join(word for word in words if word and word != "float32")

    @property
    def setting(self) -> str:
        """Where it is measured: `224 x 224, batch 8, inference`."""
        words = [f"{self.size[0]} x {self.size[1]}", f"batch {self.batch_size}", self.mode]
        words += ["backbone"] if self.task == "backbone" else []
        return ", ".join(words + ([self.grouping] if self.grouping else []))


@dataclass(frozen=True)
class Comparison:
    """Cases that are measured in turn, round after round, and compared with one of them.

    Attributes:
        title: What is compared.
        cases: At least one.
        baseline: Index of the case that the others are compared with.
        target: What the project aims at, shown beside what was measured; never asserted.
    """

    title: str
    cases: list[Case] = field(default_factory=list)
    baseline: int = 0
    target: str = ""


def parse_model(spec: str, base: Case) -> Case:
    """`[IMPLEMENTATION:]NAME[@DTYPE][@compiled|@eager]`, such as `original:crossformer-s@autocast@compiled`.

    Args:
        spec: What the command line says.
        base: Everything else about the case, and what holds where `spec` says nothing.

    Raises:
        BenchmarkError: There is no such implementation or option.
    """
    name, *options = spec.split("@")
    implementation, _, model = name.rpartition(":")
    implementation = implementation or "ours"
    if implementation not in IMPLEMENTATIONS:
        raise BenchmarkError(
            f"{spec} asks for the code of {implementation}, but it must be one of {', '.join(IMPLEMENTATIONS)}"
        )
    case = replace(base, model=model, implementation=implementation)
    for option in options:
        case = with_option(case, option, spec)
    return case


def with_option(case: Case, option: str, spec: str) -> Case:
    """The case with what follows an `@` applied.

    Raises:
        BenchmarkError: There is no such option.
    """
    if option in DTYPES:
        return replace(case, dtype=option)
    if option in (COMPILED, EAGER):
        return replace(case, compiled=option == COMPILED)
    options = ", ".join((*DTYPES, COMPILED, EAGER))
    raise BenchmarkError(f"{spec} has the option @{option}, but it must be one of {options}")


def parse_size(text: str) -> tuple[int, int]:
    """`224` or `800x1216`, height before width, in pixels.

    Raises:
        BenchmarkError: It is no size.

    Example:
    ```python
    >>> from benchmarks.cases import parse_size

    >>> parse_size("224"), parse_size("800x1216")
    ((224, 224), (800, 1216))

    ```
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() for side in sides):
        raise BenchmarkError(f"{text} is no size: it must be one side or HEIGHTxWIDTH in pixels, such as 800x1216")
    height, width = int(sides[0]), int(sides[-1])
    if not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in (height, width)):
        raise BenchmarkError(f"{text} is no size: a side must be between {SMALLEST_SIDE} and {LARGEST_SIDE} pixels")
    return height, width
