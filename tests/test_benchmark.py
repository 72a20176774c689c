"""The benchmark: what it counts, what it makes of times, and whole runs on models too small to take long."""

import json
from pathlib import Path

import pytest
import torch
from test_verify import ARCHITECTURE, STAND_IN
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.benchmark import main
from benchmarks.cases import Case, parse_model, parse_size
from benchmarks.errors import BenchmarkError
from benchmarks.flops import FLOPS_PER_MULTIPLY_ADD, model_costs, squares, total
from benchmarks.measuring import call_times, interleaved_times, quantile, speedups, spread
from benchmarks.memory import peak_bytes
from benchmarks.models import build_model
from benchmarks.workload import Workload, counted_flops
from crossformer_hf import CrossFormerForImageClassification, preset_config
from crossformer_hf.presets import PRESETS


# Published GFLOPs at 224 pixels (arXiv 2108.00154, 2303.06908), and what the authors' own `flops()` returns. For two
# architectures these disagree; nothing that could be counted otherwise explains the difference.
PUBLISHED = {
    "crossformer-t": (2.9, 2.858292352),
    "crossformer-s": (4.9, 4.90981536),
    "crossformer-b": (9.2, 9.16543008),
    "crossformer-l": (16.1, 16.115635968),
    "crossformer-pp-s": (4.9, 4.388547456),
    "crossformer-pp-b": (9.5, 9.50411808),
    "crossformer-pp-l": (16.6, 16.567219968),
    "crossformer-pp-h": (21.8, 21.58592384),
}
DISAGREE = ("crossformer-pp-s", "crossformer-pp-h")
TINY = "crossformer-32px"


def meta_classifier(config) -> CrossFormerForImageClassification:
    with torch.device("meta"):
        return CrossFormerForImageClassification(config).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_flops_match_the_published_ones(name):
    published, by_the_authors_code = PUBLISHED[name]
    cost = total(model_costs(preset_config(name, num_labels=1000), (224, 224)))
    assert cost.published / 1e9 == pytest.approx(by_the_authors_code, rel=1e-4)
    if name not in DISAGREE:
        assert round(cost.published / 1e9, 1) == round(cost.multiply_adds / 1e9, 1) == published


@pytest.mark.parametrize("name", ["crossformer-t", "crossformer-s", "crossformer-pp-s", "crossformer-pp-h"])
def test_flops_and_parameters_match_the_model(name):
    config = preset_config(name, num_labels=1000, attn_implementation="eager")
    model = meta_classifier(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    cost = total(model_costs(config, (224, 224)))
    assert FLOPS_PER_MULTIPLY_ADD * cost.multiply_adds == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert cost.parameters == model.num_parameters()


@pytest.mark.parametrize("options", [{"use_patch_norm": False}, {"qkv_bias": False}, {"mlp_ratio": [1, 2, 3]}])
def test_parameters_follow_the_options(options):
    config = preset_config("crossformer-pp-32px", **options)
    cost = total(model_costs(config, (32, 32)))
    assert cost.parameters == meta_classifier(config).num_parameters()


def test_a_backbone_has_no_head():
    config = preset_config(TINY, num_labels=10)
    assert {cost.stage for cost in model_costs(config, (36, 50), with_head=False)} == {"stem", *config.stage_names[1:]}


@pytest.mark.parametrize("side", [1, 5, 8, 13, 28])
@pytest.mark.parametrize(("group", "interval"), [(7, 1), (4, 2), (3, 4), (1, 5)])
def test_only_real_pairs_of_tokens_count(side, group, interval):
    def group_of(token: int) -> tuple[int, int]:
        return token // (group * interval), token % interval

    pairs = sum(group_of(first) == group_of(second) for first in range(side) for second in range(side))
    assert squares(side, group, interval) == pairs


def test_ratios_are_taken_within_rounds():
    slowing_down = [[1.0], [2.0], [4.0]]
    twice_as_fast = [[0.5, 0.5, 0.6], [1.0], [2.0]]
    ratios = spread(speedups(twice_as_fast, slowing_down))
    assert (ratios.median, ratios.lower, ratios.upper) == (2, 2, 2)
    assert str(spread([1, 2, 3, 4, 5])) == "3.00 (2.00 to 4.00)"
    assert [quantile([3, 1, 2], part) for part in (0, 0.25, 1)] == [1, 1.5, 3]


def test_every_round_runs_everything_once_in_an_order_of_its_own():
    def order(seed: int) -> list[str]:
        calls = []
        runs = {name: lambda name=name: calls.append(name) for name in "abcd"}
        times = interleaved_times(runs, rounds=6, seed=seed)
        assert all(len(rounds) == 6 and all(len(calls) == 1 for calls in rounds) for rounds in times.values())
        return ["".join(calls[start : start + 4]) for start in range(0, 24, 4)]

    assert all(sorted(calls) == list("abcd") for calls in order(0))
    assert len(set(order(0))) > 1
    assert order(0) == order(0) != order(1)


def test_short_runs_are_repeated(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("benchmarks.measuring.time.perf_counter", lambda: next(clock))
    waits = []
    assert call_times(lambda: None, min_seconds=2.5, wait=lambda: waits.append(1)) == [1, 1, 1]
    assert len(waits) == 6


def test_specifications():
    base = Case("", batch_size=8)
    case = parse_model("original:crossformer-s@autocast@compiled", base)
    assert (case.implementation, case.model, case.dtype, case.compiled) == (
        "original",
        "crossformer-s",
        "autocast",
        True,
    )
    assert case.batch_size == 8
    assert case.name == "original crossformer-s autocast compiled"
    assert parse_model("crossformer-s", base).implementation == "ours"
    assert parse_size("3840X1920") == (3840, 1920)


@pytest.fixture
def files(tmp_path) -> list[str]:
    return ["--device", "cpu", "--json", str(tmp_path / "a/b.json"), "--picture", str(tmp_path / "a/b.png")]


def run(*arguments: str, files: list[str]) -> tuple[int, dict]:
    """Run the command briefly; return its exit status and the JSON that it wrote."""
    status = main([*arguments, "--rounds", "2", "--warmup", "1", *files])
    for picture in (Path(files[5]), Path(files[3]).with_suffix(".png")):
        assert picture.read_bytes().startswith(b"\x89PNG")
    return status, json.loads(Path(files[3]).read_text())


def test_a_whole_run(files, capsys):
    models = ("--models", TINY, "crossformer-pp-32px", "--baseline", "crossformer-pp-32px")
    options = ("--sizes", "32", "40x32", "--modes", "training", "--batch_sizes", "2")
    status, written = run(*models, *options, files=files)
    assert status == 0
    assert written["machine"]["torch"] == torch.__version__
    assert [comparison["baseline"] for comparison in written["comparisons"]] == [1, 1]
    result = written["comparisons"][1]["results"][0]
    assert result["case"]["size"] == [40, 32]
    assert [len(calls) for calls in result["times"]] == [1, 1]
    assert result["images_per_second"] == pytest.approx(2 / result["latency"]["p50"])
    assert "40 x 32, batch 2, training" in capsys.readouterr().out


def test_growth(files):
    options = ("--growth", "--models", TINY, "--sizes", "32", "64", "--batch_sizes", "1", "2")
    status, written = run(*options, files=files)
    assert status == 0
    sizes, batches = (comparison["results"] for comparison in written["comparisons"])
    assert [result["case"]["size"] for result in sizes] == [[32, 32], [64, 64]]
    assert [result["case"]["batch_size"] for result in batches] == [1, 2]


def test_the_flops_table(capsys):
    assert main(["--flops", "--models", "crossformer-s"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert last[:5] == ["total", "9.812", "100.0", "%", "4.910"]


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout of the original code with a stand-in for it, and a preset that the stand-in computes."""
    monkeypatch.setitem(PRESETS, "micro", ARCHITECTURE)
    models = tmp_path / "checkout/models"
    models.mkdir(parents=True)
    (models / "crossformer.py").write_text(STAND_IN)
    (models / "crossformer_backbone_det.py").write_text(STAND_IN.replace("DENSE = False", "DENSE = True"))
    return models.parent


def test_the_original_code_gets_our_weights(checkout, files, capsys):
    models = ("--models", "original:micro", "micro", "micro@bfloat16", "--original", str(checkout))
    status, written = run(*models, "--sizes", "32", "34", "--modes", "training", files=files)
    assert status == 1
    assert (
        "not measured: classify float32 eager, 34 x 34, batch 1, training: the original takes multiples of 4 pixels"
        in capsys.readouterr().err
    )
    (comparison,) = written["comparisons"]
    _, ours, ours_in_bfloat16 = (result["difference"] for result in comparison["results"])
    assert ours < 1e-5 < ours_in_bfloat16 < 0.1


def test_in_training_the_original_drops_paths(checkout):
    case = Case("micro", "original", (32, 32), mode="training", checkouts=(checkout,))
    model = build_model(case, seed=0)
    assert model.training
    dropping = [type(module) for module in model.modules() if "DropPath" in type(module).__name__]
    assert len(dropping) == 2
    assert all(kind.__module__.startswith("timm.") for kind in dropping)


@pytest.mark.parametrize("implementation", ["transformers", "timm"])
@pytest.mark.parametrize("model", ["swin-t", "convnext-t"])
@pytest.mark.parametrize("task", ["classify", "backbone"])
def test_other_libraries(implementation, model, task):
    with torch.device("meta"):
        built = build_model(Case(model, implementation, (224, 320), task=task), seed=0).eval()
    assert counted_flops(built, (224, 320)) > 1e9


def test_memory():
    peak = peak_bytes(Case(TINY, size=(32, 32), batch_size=16, mode="training"), torch.device("cpu"))
    assert 2**20 < peak < 2**31


def test_a_model_that_cannot_take_the_size_is_said():
    with pytest.raises(BenchmarkError, match="cannot take 8 x 8"):
        Workload(Case("convnext-t", "transformers", (8, 8)), torch.device("cpu")).outputs()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "crossformer-x"], "ours:crossformer-x is no model, but it must be one of crossformer-t, "),
        (["--models", "timm:nothing"], "timm:nothing is no model"),
        (["--models", "paper:crossformer-s"], "must be one of ours, original, transformers, timm"),
        (["--models", "crossformer-s@int8"], "has the option @int8"),
        (["--models", "original:crossformer-s"], "needs a checkout of the original code"),
        (["--original", "nowhere"], "nowhere is no checkout of the original code"),
        (["--baseline", "crossformer-b"], "must be one of --models"),
        (["--preset", "cpu", "--models", "crossformer-s"], "has models of its own"),
        (["--preset", "gpu", "--device", "cpu"], "needs CUDA"),
        (["--flops", "--models", "timm:swin-t"], "for CrossFormer only"),
        (["--device", "tpu"], "--device is tpu"),
        (["--device", "cuda:99"], "no such device"),
        (["--sizes", "224x"], "224x is no size"),
        (["--sizes", "2"], "a side must be between 4 and"),
        (["--rounds", "0"], "0 must be a whole number, at least 1"),
        (["--min_seconds", "nan"], "nan must be a number of seconds"),
        (["--dtypes", "float8"], "invalid choice: 'float8'"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, message, capsys):
    assert main(arguments) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
