"""Reading an architecture from a JSON file, for checkpoints that are no released variant."""

import difflib
import json
from pathlib import Path

from conversion.command import ConversionError, explain
from crossformer_hf import CrossFormerConfig


def read_config(path: Path) -> CrossFormerConfig:
    """Read a `CrossFormerConfig` from JSON.

    Raises:
        ConversionError: It is no JSON object, has a field that no configuration has, or breaks a rule.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is no JSON: {explain(error)}; correct it") from error
    if not isinstance(fields, dict):
        raise ConversionError(f"{path} holds no JSON object; give the fields of a CrossFormerConfig")
    check_fields(path, fields)
    try:
        return CrossFormerConfig.from_dict(fields)
    except Exception as error:  # Transformers has many; each says which field breaks which rule
        raise ConversionError(f"{path} is no configuration: {explain(error)}") from error


def check_fields(path: Path, fields: dict) -> None:
    """Refuse an unknown field: Transformers would keep it without a word, and a default would stand in its place.

    Raises:
        ConversionError: There is one.
    """
    known = {*CrossFormerConfig().to_dict(), "auto_map", "num_labels", "out_features", "out_indices"}
    if fields.get("model_type", "crossformer") != "crossformer":
        raise ConversionError(f"{path} is of a model of type {fields['model_type']!r}; give a CrossFormerConfig")
    for name in sorted(fields.keys() - known):
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean `{close[0]}`?" if close else "remove it"
        raise ConversionError(f"{path} has the field `{name}`, which no CrossFormerConfig has; {hint}")
