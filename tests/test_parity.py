"""Every output equals what the original authors' code computes, for each architecture, option, grouping and size."""

import numpy as np
import pytest
import torch
from golden import DATA, image_for, model_for, read_case, relative_error, sample, tensor_for
from torch.nn.functional import cross_entropy

from conversion.key_mapping import rename


CASES = sorted(path.stem for kind in ("classify", "dense") for path in DATA.glob(f"{kind}-*.npz"))
SETTINGS = [("eager", torch.float32, 1e-5), ("sdpa", torch.float32, 1e-5), ("eager", torch.float64, 1e-9)]


def outputs_of(model, case: dict, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """The model's outputs under the names that the cases use, sampled as theirs are."""
    pixel_values = image_for(case["image_shape"], case["image_seed"]).to(dtype)
    with torch.no_grad():
        outputs = model(pixel_values, output_hidden_states=True)
    maps = dict(zip(["embeddings", "stage1", "stage2", "stage3", "stage4"], outputs.hidden_states, strict=True))
    if "logits" not in outputs:
        return {name: sample(feature_map) for name, feature_map in maps.items()}
    samples = {name: sample(feature_map.flatten(2).transpose(1, 2)) for name, feature_map in maps.items()}
    return {**samples, "logits": outputs.logits.double().numpy()}


def test_all_cases_are_there():
    assert len([name for name in CASES if name.startswith("classify-")]) == 25
    assert len([name for name in CASES if name.startswith("dense-")]) == 22


@pytest.mark.parametrize("name", CASES)
def test_outputs(name):
    case, expected = read_case(name), np.load(DATA / f"{name}.npz")
    model = model_for(case)
    for implementation, dtype, tolerance in SETTINGS:
        model.set_attn_implementation(implementation)
        actual = outputs_of(model.to(dtype), case, dtype)
        for output in expected.files:
            assert relative_error(actual[output], expected[output]) < tolerance, (implementation, dtype, output)


@pytest.mark.parametrize("name", ["train-micro", "train-micro-pp"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_loss_and_gradients(name, implementation):
    case = read_case(name)
    model = model_for(case, division=np.float64).double()
    model.set_attn_implementation(implementation)
    pixel_values = image_for(case["image_shape"], case["image_seed"]).double()
    loss = cross_entropy(model(pixel_values).logits, torch.tensor(case["labels"]))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    parameters = {key.removeprefix("crossformer."): parameter for key, parameter in model.named_parameters()}
    shapes = dict(map(tuple, case["parameters"]))
    for key, (norm, projection) in case["gradients"].items():
        gradient = parameters[rename(key)].grad
        direction = tensor_for(key, shapes[key], case["gradient_projection_seed"], np.float64).double()
        # A constant added to all scores changes nothing, so some biases' gradients are rounding errors around 0.
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-8, abs=1e-14), key
        # The product is small where the vectors are nearly orthogonal, so their norms set its tolerance.
        tolerance = 1e-8 * norm * direction.norm().item() + 1e-14
        assert (gradient * direction).sum().item() == pytest.approx(projection, abs=tolerance), key
