"""Uploading a converted folder, once it is known to be whole."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig

from conversion.command import ConversionError, explain
from conversion.hub_folder import CODE_FILES
from conversion.porting import empty_model, listed
from conversion.targets import BACKBONE, TARGETS, Target


NEEDED = ("config.json", "model.safetensors", "preprocessor_config.json")


def push(args: argparse.Namespace) -> None:
    """Check, then upload, as the arguments of `push_to_hub.py` say.

    Raises:
        ConversionError: Nothing was uploaded.
    """
    check_folder(args.folder)
    if get_token() is None:
        raise ConversionError("there is no Hugging Face token on this machine; run `hf auth login` first")
    try:
        address = upload(args)
    except HFValidationError as error:
        raise ConversionError(f"{args.repository!r} is no repository name: {explain(error)}") from error
    except HfHubHTTPError as error:
        raise ConversionError(f"the Hub refused: {explain(error)[:300]}; may your token write there?") from error
    except Exception as error:  # the classes of the network's errors differ between versions of huggingface_hub
        raise ConversionError(f"the Hub cannot be reached ({explain(error)[:200]}); try again online") from error
    print(f"uploaded to {address}")


def upload(args: argparse.Namespace) -> str:
    """Make the repository and the branch unless they are there, and upload; return the address."""
    api = HfApi()
    repository = api.create_repo(args.repository, private=args.private or None, exist_ok=True).repo_id
    if args.revision:
        api.create_branch(repository, branch=args.revision, exist_ok=True)
    api.upload_folder(
        repo_id=repository,
        folder_path=args.folder,
        revision=args.revision,
        commit_message="Upload a converted CrossFormer",
    )
    return f"https://huggingface.co/{repository}"


def check_folder(folder: Path) -> None:
    """Require a whole converted model: every file, and the weights that the configuration calls for.

    Raises:
        ConversionError: Something is missing or does not fit.
    """
    require_files(folder, NEEDED)
    config, target = read_target(folder)
    if target.brings_code:
        require_files(folder, CODE_FILES)
    expected = {
        name: tuple(tensor.shape) for name, tensor in empty_model(target.model_class, config).state_dict().items()
    }
    found = stored_shapes(folder / "model.safetensors")
    wrong = [name for name in expected | found if expected.get(name) != found.get(name)]
    if wrong:
        raise ConversionError(f"{folder}: weights and config.json do not fit: {listed(wrong)}; convert it again")


def require_files(folder: Path, names: Iterable[str]) -> None:
    """Require these files.

    Raises:
        ConversionError: One is missing.
    """
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ConversionError(f"{folder} lacks {', '.join(absent)}; give the --output of convert_crossformer.py")


def read_target(folder: Path) -> tuple[PreTrainedConfig, Target]:
    """The configuration in a folder, and which target it is of.

    Raises:
        ConversionError: It is none, or of a model that is not converted here.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # Transformers has many; each says which field breaks which rule
        raise ConversionError(f"{folder / 'config.json'} is no configuration: {explain(error)}") from error
    architecture = (config.architectures or [BACKBONE.model_class.__name__])[0]
    targets = [target for target in TARGETS if target.model_class.__name__ == architecture]
    if not targets:
        raise ConversionError(f"{folder} holds a {architecture}; give the --output of convert_crossformer.py")
    return config, targets[0]


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in a safetensors file, out of its header."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except SafetensorError as error:
        raise ConversionError(f"{path} is damaged: {explain(error)}; convert it again") from error
