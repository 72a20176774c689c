"""Ready-made lists of comparisons: `cpu` and `gpu`."""

from dataclasses import replace

from benchmarks.cases import Case, Comparison, parse_model


SAME_OUTPUTS = "outputs within 1e-5 of the original's"
DENSE_SIZE = (800, 1216)
GPU_BATCH = 128


def compare(title: str, models: str, base: Case, target: str = "", **changes) -> Comparison:
    """A comparison of the `models`, apart by blanks, with the first of them."""
    base = replace(base, **changes)
    return Comparison(title, [parse_model(spec, base) for spec in models.split()], target=target)


def cpu_preset(base: Case) -> list[Comparison]:
    """CrossFormer-S on a CPU, beside the original in float32."""
    both, dense = "original:crossformer-s crossformer-s", {"size": DENSE_SIZE, "task": "backbone"}
    return [
        compare("classify", both, base, SAME_OUTPUTS, batch_size=8),
        compare("classify", both, base, SAME_OUTPUTS),
        compare("bfloat16 against float32", "original:crossformer-s crossformer-s@bfloat16", base, batch_size=8),
        compare("dense", both, base, SAME_OUTPUTS, grouping="fixed_group", **dense),
        compare("dense", both, base, SAME_OUTPUTS, grouping="fixed_interval", **dense),
        compare("training step", both, base, SAME_OUTPUTS, batch_size=8, mode="training"),
        compare("compiled against eager", "crossformer-s crossformer-s@compiled", base, batch_size=8),
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
                compare("against the original", original, base, mode=mode),
                compare("against Swin", f"timm:{swin}@compiled {name}@compiled", base, mode=mode),
            ]
    return comparisons


PRESETS = {"cpu": cpu_preset, "gpu": gpu_preset}
