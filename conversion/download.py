"""Fetching a released checkpoint, where its address is one that a program can read."""

import os
import secrets
from pathlib import Path

from conversion.command import ConversionError, explain
from conversion.porting import read_weights
from conversion.variants import Variant


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crossformer-hf"


def download(variant: Variant) -> Path:
    """Fetch a released checkpoint from Google Drive, unless it was fetched before, and check that it can be read.

    Raises:
        ConversionError: It was not published there, did not arrive, or is no checkpoint.
    """
    path = cache_folder() / f"{variant.name}.pth"
    if path.is_file():
        return path
    if not variant.is_released:
        raise ConversionError(f"the weights of {variant.name} were not released; give your own file as CHECKPOINT")
    if variant.google_drive is None:
        raise ConversionError(f"{variant.name} was published on Baidu only, which takes a browser; {by_hand(variant)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{secrets.token_hex(4)}.partial")
    try:
        _fetch(variant, partial)
        read_weights(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def by_hand(variant: Variant) -> str:
    """How to fetch it without this program."""
    return f"download {variant.address} by hand, then give the file in place of --download"


def _fetch(variant: Variant, path: Path) -> None:
    try:
        import gdown
    except ImportError as error:
        raise ConversionError('--download needs gdown: run `pip install "crossformer-hf[convert]"`') from error
    try:
        arrived = gdown.download(id=variant.google_drive, output=str(path))
    except Exception as error:  # whatever gdown and the network under it raise, the way out is the same
        raise ConversionError(f"{variant.name} did not arrive ({explain(error)[:200]}); {by_hand(variant)}") from error
    if not arrived or not path.is_file():
        raise ConversionError(f"{variant.name} did not arrive; {by_hand(variant)}")
