"""Uploading a converted folder, once it is known to be whole."""

import argparse
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open

from conversion.command import ConversionError, explain
from conversion.hub_folder import CODE_FILES
from conversion.porting import empty_model, listed
from crossformer_hf import CrossFormerConfig


NEEDED = ("config.json", "model.safetensors", "preprocessor_config.json", *CODE_FILES)


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
    absent = [name for name in NEEDED if not (folder / name).is_file()]
    if absent:
        raise ConversionError(f"{folder} lacks {', '.join(absent)}; give the --output of convert_crossformer.py")
    expected = expected_shapes(folder)
    found = stored_shapes(folder / "model.safetensors")
    wrong = [name for name in expected | found if expected.get(name) != found.get(name)]
    if wrong:
        raise ConversionError(f"{folder}: weights and config.json do not fit: {listed(wrong)}; convert it again")


def expected_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that the configuration calls for."""
    try:
        config = CrossFormerConfig.from_pretrained(folder)
        model = empty_model(config, "CrossFormerForImageClassification" in (config.architectures or []))
    except Exception as error:  # Transformers has many; each says which field breaks which rule
        raise ConversionError(f"{folder / 'config.json'} is no configuration: {explain(error)}") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in a safetensors file, out of its header."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except SafetensorError as error:
        raise ConversionError(f"{path} is damaged: {explain(error)}; convert it again") from error
