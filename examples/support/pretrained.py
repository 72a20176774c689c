"""What folders and the Hub hold: configurations, models and image processors; what cannot be loaded is named."""

from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig

from .errors import InputError


def labels_of(names: list[str]) -> dict:
    """Fields of a configuration that name the classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def read_config(path: str) -> PreTrainedConfig:
    """Configuration of the model in a folder or on the Hub.

    Raises:
        InputError: There is none that Transformers knows.
    """
    return load(AutoConfig.from_pretrained, path)


def load_image_processor(path: str):
    """Image processor saved with a model.

    Raises:
        InputError: There is none.
    """
    return load(AutoImageProcessor.from_pretrained, path)


def load(function, *arguments, **options):
    """Call a function that loads something from a folder or the Hub.

    Raises:
        InputError: It could not be loaded.
    """
    try:
        return function(*arguments, **options)
    except Exception as error:  # Folders hold anything, and the Hub may be out of reach.
        path = next(argument for argument in arguments if isinstance(argument, str | Path))
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be loaded ({reason[:200]}): give a folder with a model that was saved with "
            "`save_pretrained`, or its name on the Hub"
        ) from error
