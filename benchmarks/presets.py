"""Ready-made lists of comparisons: `cpu` and `gpu`."""

from dataclasses import replace

from benchmarks.cases import Case, Comparison, parse_model


SAME_OUTPUTS = "outputs within 1e-5 of the original's"
NO_MORE_MEMORY = "no more peak memory"
DENSE_SIZE = (800, 1216)
GPU_BATCH = 128
GPU_TARGETS = {"inference": "3 x compiled", "training": "2 x compiled"}


def compare(title: str, models: str, base: Case, target: str = "", **changes) -> Comparison:
    """A comparison of the `models`, apart by blanks, with the first of them."""
    base = replace(base, **changes)
    return Comparison(title, [parse_model(spec, base) for spec in models.split()], target=target)


def cpu_preset(base: Case) -> list[Comparison]:
    """CrossFormer-S on a CPU, beside the original in float32."""
    both, dense = "original:crossformer-s crossformer-s", {"size": DENSE_SIZE, "task": "backbone"}
    eager_first, batch = "crossformer-s crossformer-s@compiled", {"batch_size": 8}
    return [
        compare("classify", both, base, f"1.25 x, 80 % of matmul, {SAME_OUTPUTS}", **batch),
        compare("classify", both, base, f"1.3 x, {SAME_OUTPUTS}"),
        compare("bfloat16 against float32", "original:crossformer-s crossformer-s@bfloat16", base, "2.5 x", **batch),
        compare("dense", both, base, f"1.5 x, {SAME_OUTPUTS}", grouping="fixed_group", **dense),
        compare("dense", both, base, f"2.5 x, half the memory, {SAME_OUTPUTS}", grouping="fixed_interval", **dense),
        compare("training step", both, base, f"1.25 x, {NO_MORE_MEMORY}, {SAME_OUTPUTS}", mode="training", **batch),
        compare("compiled against eager", eager_first, base, "1 x", **batch),
        compare("compiled against eager", eager_first, base, "1 x"),
        compare("compiled against eager", eager_first, base, "1 x", mode="training", **batch),
    ]


def gpu_preset(base: Case) -> list[Comparison]:
    """CrossFormer-S and -B on a GPU under bfloat16 autocast, beside the original and timm's Swin."""
    base = replace(base, dtype="autocast", batch_size=GPU_BATCH)
    comparisons = []
    for mode in ("inference", "training"):
        for size in ("s", "b"):
            name, swin = f"crossformer-{size}", {"s": "swin-t", "b": "swin-s"}[size]
            original = f"original:{name} {name} original:{name}@compiled {name}@compiled"
            comparisons += [
                compare("against the original", original, base, GPU_TARGETS[mode], mode=mode),
                compare("against Swin", f"timm:{swin}@compiled {name}@compiled", base, "1 x", mode=mode),
            ]
    return comparisons


PRESETS = {"cpu": cpu_preset, "gpu": gpu_preset}
