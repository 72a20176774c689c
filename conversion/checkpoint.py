"""Reading checkpoint files that nobody vouches for: tensors and plain data come out, nothing in them is ever run.

A `.pth` file is a pickle, a program that builds objects and may name any function to call. Two fences keep it inert:

1. Before anything is built, the pickle's instructions are listed with `pickletools`, which runs none of them. A file
   that names anything beyond the few globals below is refused, by name.
2. What passes goes to `torch.load(weights_only=True)`, which has an allow list of its own. The names that it does not
   know (the original's `yacs` configuration, numpy's numbers) are lent to it as inert stand-ins from this file, so
   neither yacs nor numpy's own unpickling code runs.
"""

import os
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open


# Where the weights are: "model" in the original's classification checkpoints, "state_dict" in mmdet's and mmseg's.
WEIGHT_ENTRIES = ("model", "state_dict")
# What training needs to resume and nobody else does.
TRAINING_ENTRIES = ("optimizer", "lr_scheduler", "scaler", "amp")

# The globals that `torch.load(weights_only=True)` knows and a checkpoint needs. Its own list is longer: sparse,
# quantized and wrapped tensors, raw allocations. No CrossFormer checkpoint holds those.
TORCH_GLOBALS = frozenset(
    """
    _codecs.encode builtins.set collections.OrderedDict
    torch._utils._rebuild_parameter torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2
    torch.nn.parameter.Parameter torch.Size torch.device
    torch.BFloat16Storage torch.BoolStorage torch.ByteStorage torch.CharStorage torch.DoubleStorage
    torch.FloatStorage torch.HalfStorage torch.IntStorage torch.LongStorage torch.ShortStorage
    torch.bfloat16 torch.float16 torch.float32 torch.float64 torch.int32 torch.int64
    """.split()
)
# Tuples are the one thing that a pickle can nest without end and that Python then hashes by recursion in C: some
# 150,000 levels overflow the stack and kill the process. A released checkpoint holds about 4 tuples per tensor.
MOST_TUPLES = 50_000
# How much metadata is kept: shared references let a short pickle describe endless data.
MOST_METADATA_VALUES = 200_000
DEEPEST_METADATA = 50

ZIP_MAGIC = b"PK\x03\x04"
# The legacy format is a row of pickles, then the raw storages: magic number, version, system, object, storage keys.
LEGACY_PICKLES = 5


class CheckpointError(Exception):
    """A file cannot be read as a checkpoint; the message is one line for the user."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        state_dict: The weights under the original's names, without the prefix of distributed training. They may be
            mapped from the file, so keep the file in place while they are in use.
        metadata: What was saved beside them (`epoch`, `max_accuracy`, the training `config`, mmdet's `meta`) as
            dicts, lists, numbers and strings. Anything else is a string such as `"<Tensor>"`.
    """

    state_dict: dict[str, torch.Tensor]
    metadata: dict[str, Any]


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint of the original code, mmdetection or mmsegmentation, or a safetensors file.

    Raises:
        CheckpointError: The file is missing, damaged, holds no weights, or asks to run something.
    """
    path = Path(path)
    head = _read_head(path)
    _refuse_text(path, head)
    with _blaming(path):
        if path.suffix == ".safetensors":
            content = _read_safetensors(path)
        elif head.startswith(ZIP_MAGIC):
            content = _read_zip(path)
        else:
            content = _read_legacy(path)
    weights = _find_weights(path, content)
    return Checkpoint(_state_dict(path, weights), {} if weights is content else _metadata(content, weights))


def nonfinite_keys(state_dict: dict[str, torch.Tensor]) -> list[str]:
    """List the weights that hold an infinity or a NaN, as a training run that diverged leaves them."""
    return [key for key, tensor in state_dict.items() if not torch.isfinite(tensor).all()]


# --- The file ---


def _read_head(path: Path) -> bytes:
    """Return the first kilobyte of a regular file that is there, readable and not empty."""
    try:
        if not path.exists():
            raise CheckpointError(f"{path} does not exist; check the path")
        if path.is_dir():
            raise CheckpointError(f"{path} is a directory; give the checkpoint file inside it")
        if not path.is_file():  # reading a pipe or a device might never end
            raise CheckpointError(f"{path} is not a regular file; give a checkpoint file")
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}; check its permissions") from error
    if not head:
        raise CheckpointError(f"{path} is empty; download it again")
    return head


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or hostile file makes a parser raise into one `CheckpointError`.

    There is no narrower list of exceptions: the file chooses the operations, and with them the errors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged, incomplete or not a PyTorch checkpoint ({type(error).__name__}); download it again"
        ) from error


def _refuse_text(path: Path, head: bytes) -> None:
    """Refuse what a download leaves behind when it did not deliver the file."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise CheckpointError(
            f"{path} looks like a web page, not a checkpoint, as Google Drive sends when its quota is exceeded; "
            "download it again in a browser"
        )
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the checkpoint itself; run `git lfs pull`")
    if not re.search(rb"[\x00-\x08\x0e-\x1f\x7f]", head):
        raise CheckpointError(f"{path} is a text file, not a checkpoint; download it again")


# --- The three formats ---


def _read_zip(path: Path) -> Any:
    """Read torch's own format, a zip archive, with its tensors mapped from the file rather than copied."""
    with zipfile.ZipFile(path) as archive:
        _check_archive(path, archive)
        for name in archive.namelist():
            if _is_pickle(name):
                _check_pickle(path, BytesIO(archive.read(name)))
    with torch.serialization.safe_globals(STAND_INS):
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that `torch.save` did not write, or that changed since."""
    names, records = archive.namelist(), archive.infolist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(f"{path} is a TorchScript archive, a program; save its state_dict with `torch.save`")
    if not any(_is_pickle(name) for name in names):
        raise CheckpointError(f"{path} is a zip archive without a checkpoint in it; unpack it and give the .pth file")
    stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    if not stored or sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(f"{path} is compressed, which `torch.save` never does; save it again with `torch.save`")
    for record in records:
        record.CRC = record.CRC or None  # torch writes 0 where it was told not to compute one; zipfile skips None
    damaged = archive.testzip()  # torch.load compares no checksums
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {_shown(damaged)} has a wrong checksum; download it again")


def _is_pickle(name: str) -> bool:
    return name.lower().endswith("/data.pkl")  # torch finds the record in any case


def _read_legacy(path: Path) -> Any:
    """Read the format of torch before 1.6, a row of pickles."""
    with path.open("rb") as file:
        for _ in range(LEGACY_PICKLES):
            _check_pickle(path, file)
        file.seek(0)
        with torch.serialization.safe_globals(STAND_INS):
            return torch.load(file, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return {**(file.metadata() or {}), "model": {key: file.get_tensor(key) for key in file.keys()}}


# --- The pickle's instructions ---


def _check_pickle(path: Path, file: BinaryIO) -> None:
    """Read the instructions of the next pickle in `file`, running none; refuse the first that no checkpoint needs."""
    tuples = 0
    strings: deque[str] = deque(maxlen=2)
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("GLOBAL", "INST"):
            _check_global(path, argument.replace(" ", ".", 1))
        elif operation.name == "STACK_GLOBAL":  # takes its two names off the stack
            _check_global(path, ".".join(strings))
            raise CheckpointError(f"{path} uses a pickle protocol that is not read safely; save it with protocol 2")
        elif isinstance(argument, str):
            strings.append(argument)
        tuples += "TUPLE" in operation.name
        if tuples > MOST_TUPLES:
            raise CheckpointError(f"{path} nests more data than any checkpoint does; it was refused")


def _check_global(path: Path, name: str) -> None:
    name = re.sub(r"^__builtin__\.", "builtins.", name)  # as Python 2 called it, and so as torch.save writes it
    if name not in TORCH_GLOBALS and name not in STAND_IN_NAMES:
        raise CheckpointError(
            f"{path} asks to run {_shown(name)}, which no checkpoint needs; it was refused and nothing was executed"
        )


# --- Stand-ins for what torch does not know ---


class _Attributes:
    """Stands in for an object whose attributes are data, such as an `argparse.Namespace`."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _NumpyType:
    """Stands in for a `numpy.dtype`: its code, such as `f8`, and its byte order."""

    order: Any = "="

    def __init__(self, code: Any = "", *_: Any):
        self.code = code

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def decode(self, raw: Any) -> np.ndarray:
        """Read bytes as numbers; a ValueError or TypeError if they are none."""
        if not isinstance(raw, bytes) or not re.fullmatch("[<>|=](b1|[iu][1248]|f[248])", self.order + self.code):
            raise ValueError("not numbers")
        return np.frombuffer(raw, self.order + self.code)


class _NumpyArray:
    """Stands in for a numpy array: what it was pickled as, (version, shape, type, is_fortran, bytes)."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_list(self) -> Any:
        """Return the numbers as nested lists, a single one as itself; the name of this class if they are none."""
        try:
            _, shape, kind, is_fortran, raw = self.state
            numbers = kind.decode(raw)
            if any(type(size) is not int or not 0 < size <= numbers.size for size in shape):
                raise ValueError("an empty array, perhaps of a billion empty rows")
            return numbers.reshape(shape, order="F" if is_fortran is True else "C").tolist()
        except (AttributeError, TypeError, ValueError):
            return _named(self)


def _numpy_array(*_: Any) -> _NumpyArray:
    """Stands in for numpy's `_reconstruct`, which makes an empty array to be filled."""
    return _NumpyArray()


def _numpy_scalar(kind: Any, raw: Any = None) -> _NumpyArray:
    """Stands in for numpy's `scalar`."""
    scalar = _NumpyArray()
    scalar.state = (1, (), kind, False, raw)
    return scalar


def _defaultdict(*_: Any) -> OrderedDict:
    """Stands in for `collections.defaultdict`: the default is of no use here."""
    return OrderedDict()


# torch fills an exact OrderedDict only, no subclass, so that is what a CfgNode becomes. A CfgNode's private flags end
# up in that OrderedDict's `__dict__`, where nobody looks.
STAND_INS = [
    (OrderedDict, "yacs.config.CfgNode"),
    (_Attributes, "argparse.Namespace"),
    (_defaultdict, "collections.defaultdict"),
    *((kind, f"builtins.{kind.__name__}") for kind in (dict, float, int, list)),  # the defaults of a defaultdict
    (_NumpyType, "numpy.dtype"),
    (_NumpyArray, "numpy.ndarray"),
    *((_numpy_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_numpy_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
STAND_IN_NAMES = frozenset(name for _, name in STAND_INS)


# --- What was read ---


def _find_weights(path: Path, content: Any) -> dict:
    """Return the dict that holds the weights: the entry for them, or else everything."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no weights but a single {_named(content)}; give another file")
    entries = _items(content)
    for candidate in (*(entries.get(name) for name in WEIGHT_ENTRIES), content):
        if isinstance(candidate, dict) and _holds_tensor(candidate):
            return candidate
    shown = ", ".join(_shown(key) for key in list(entries)[:20]) or "none"
    raise CheckpointError(f"{path} holds no weights; its entries are: {shown}")


def _holds_tensor(mapping: dict) -> bool:
    return any(isinstance(value, torch.Tensor) for value in _items(mapping).values())


def _items(mapping: dict) -> dict:
    """Return a plain copy; a file may give an OrderedDict an attribute that hides its `items` or `get`."""
    return dict(dict.items(mapping))


def _state_dict(path: Path, weights: dict) -> dict[str, torch.Tensor]:
    """Return the weights as plain tensors, without `module.` where every key has it (distributed training)."""
    state_dict = {}
    for key, value in _items(weights).items():
        if not isinstance(key, str):
            raise CheckpointError(f"{path} names a weight by {_shown(key)}, not by a string; give another file")
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path} holds {_shown(key)} among its weights, {_named(value)} and not a tensor; remove it"
            )
        state_dict[key] = value.detach()
    _check_sizes(path, state_dict)
    if all(key.startswith("module.") for key in state_dict):
        return {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    return state_dict


def _check_sizes(path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """Refuse weights that claim more bytes than the file has: they would fill the memory when copied."""
    file_size = path.stat().st_size
    for key, tensor in state_dict.items():
        held = min(tensor.untyped_storage().nbytes(), file_size)
        if tensor.numel() * tensor.element_size() > held:
            raise CheckpointError(f"{path} claims more data for {_shown(key)} than it holds; download it again")


def _metadata(content: dict, weights: dict) -> dict[str, Any]:
    """Return what is beside the weights as plain data."""
    room = iter(range(MOST_METADATA_VALUES))
    return {
        key: _plain(value, room)
        for key, value in _items(content).items()
        if isinstance(key, str) and key not in TRAINING_ENTRIES and value is not weights
    }


def _plain(value: Any, room: Iterator[int], depth: int = 0) -> Any:
    """Rebuild `value` from dicts, lists, numbers and strings; anything else, and all beyond `room`, is named only."""
    if next(room, None) is None or depth > DEEPEST_METADATA:
        return "<too much>"
    if isinstance(value, _NumpyArray):
        value = value.to_list()
    if isinstance(value, _Attributes):
        value = value.state
    if _is_scalar(value):
        return value
    if isinstance(value, dict):
        items = _items(value).items()
        return {key if _is_scalar(key) else _named(key): _plain(item, room, depth + 1) for key, item in items}
    if isinstance(value, list | tuple):
        return [_plain(item, room, depth + 1) for item in value]
    return _named(value)


def _is_scalar(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


def _named(value: Any) -> str:
    return f"<{type(value).__name__.lstrip('_')}>"


def _shown(name: Any) -> str:
    """Quote a name from the file: on one line, without control characters, of bounded length."""
    text = ascii(name)[1:-1] if isinstance(name, str) else _named(name)
    return f"`{text[:80]}…`" if len(text) > 80 else f"`{text}`"
