"""Reading checkpoint files that nobody vouches for: what is read, what is refused, and that nothing is ever run."""

import argparse
import builtins
import collections
import copyreg
import json
import operator
import os
import pickle
import random
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conversion.checkpoint import Checkpoint, CheckpointError, nonfinite_keys, read_checkpoint


PARITY = Path(__file__).parent / "data" / "parity"
FORMATS = {"zip": True, "legacy": False}


class Call:
    """Pickles as a call of `function`, as a hostile file would; the result then gets `items` and `state`."""

    def __init__(self, function, *arguments, items=(), state=None):
        self.function, self.arguments, self.items, self.state = function, arguments, items, state

    def __reduce__(self):
        return self.function, self.arguments, self.state, None, iter(self.items)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


@pytest.fixture(params=FORMATS)
def save(request, path):
    """Save in torch's zip format, then in its legacy format."""

    def save(content):
        torch.save(content, path, _use_new_zipfile_serialization=FORMATS[request.param])
        return path

    return save


def weights():
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2), "index": torch.arange(4)}


def refusal(path) -> str:
    """Return the one line with which a file is refused; it starts with the file's path."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isprintable()
    return message.removeprefix(str(path))


def read_pickle(path):
    """Return the instructions within the zip format."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(f"{path.stem}/data.pkl")


def rewrite_pickle(path, instructions, name="data.pkl"):
    """Replace the instructions within the zip format, with a right checksum."""
    with zipfile.ZipFile(path) as archive:
        contents = {key: archive.read(key) for key in archive.namelist()}
    del contents[f"{path.stem}/data.pkl"]
    with zipfile.ZipFile(path, "w") as archive:
        contents[f"{path.stem}/{name}"] = instructions
        for name, content in contents.items():
            archive.writestr(name, content)


# --- What is read ---


@pytest.mark.parametrize(
    ("name", "tensors", "metadata"),
    [
        ("checkpoint-micro-2021", 228, {"epoch": 7, "max_accuracy": 12.5}),
        ("checkpoint-pp-micro-main", 218, {"epoch": 7, "max_accuracy": 12.5}),
        ("checkpoint-pp-micro-mmdet-backbone", 214, {"meta": {"epoch": 12, "CLASSES": ["a", "b"]}}),
    ],
)
def test_files_of_the_original_code_are_read(name, tensors, metadata):
    checkpoint = read_checkpoint(PARITY / f"{name}.pth")
    assert len(checkpoint.state_dict) == tensors
    checkpoint.metadata.pop("config", None)
    assert checkpoint.metadata == metadata


def test_the_pickled_yacs_config_is_plain_data(monkeypatch):
    monkeypatch.setitem(sys.modules, "yacs", None)  # importing it now fails
    config = read_checkpoint(PARITY / "checkpoint-pp-micro-main.pth").metadata["config"]
    assert config["MODEL"]["CROS"]["GROUP_SIZE"] == [4, 4, 14, 7]
    assert config["TRAIN"]["OPTIMIZER"]["BETAS"] == [0.9, 0.999]
    assert json.loads(json.dumps(config)) == config


def test_tensors_come_out_as_they_went_in(save):
    read = read_checkpoint(save({"model": weights()})).state_dict
    assert list(read) == list(weights())
    assert all(torch.equal(read[key], tensor) and read[key].dtype == tensor.dtype for key, tensor in weights().items())


def test_parameters_come_out_as_tensors_without_gradient(save):
    tensor = read_checkpoint(save({"a": torch.nn.Parameter(torch.ones(2))})).state_dict["a"]
    assert type(tensor) is torch.Tensor and not tensor.requires_grad


@pytest.mark.parametrize("entry", ["model", "state_dict", None])
def test_weights_are_found_under_each_name_or_at_the_top(save, entry):
    checkpoint = read_checkpoint(save({entry: weights(), "epoch": 3} if entry else weights()))
    assert checkpoint.state_dict.keys() == weights().keys()
    assert checkpoint.metadata == ({"epoch": 3} if entry else {})


def test_module_prefix_is_stripped_where_every_key_has_it(save):
    path = save({"model": {f"module.{key}": tensor for key, tensor in weights().items()}})
    assert read_checkpoint(path).state_dict.keys() == weights().keys()


def test_module_prefix_stays_where_one_key_lacks_it(save):
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert read_checkpoint(save(mixed)).state_dict.keys() == mixed.keys()


def test_backbone_prefix_stays(save):
    assert list(read_checkpoint(save({"backbone.a": torch.ones(1)})).state_dict) == ["backbone.a"]


def test_what_resumes_training_is_left_out(save):
    content = {"model": weights(), "optimizer": {"state": {0: torch.ones(2)}}, "lr_scheduler": {"t": 1}, "epoch": 3}
    assert read_checkpoint(save(content)).metadata == {"epoch": 3}


def test_numpy_numbers_are_read(save):
    arrays = {
        "score": np.float64(0.5),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "palette": np.arange(6, dtype=">i2").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    }
    rows = [[0, 1, 2], [3, 4, 5]]
    read = {"score": 0.5, "count": 3, "flag": True, "palette": rows, "columns": rows}
    assert read_checkpoint(save({"model": weights(), "meta": arrays})).metadata == {"meta": read}


def test_namespaces_and_defaultdicts_are_read(save):
    content = {
        "model": weights(),
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.999)),
        "history": collections.defaultdict(list, loss=[1.0]),
    }
    read = {"args": {"lr": 0.1, "betas": [0.9, 0.999]}, "history": {"loss": [1.0]}}
    assert read_checkpoint(save(content)).metadata == read


def test_metadata_that_is_no_plain_data_is_only_named(save):
    content = {"model": weights(), "meta": {"mean": torch.ones(3), "raw": b"raw", "text": np.array(["a"])}}
    named = {"mean": "<Tensor>", "raw": "<bytes>", "text": "<NumpyArray>"}
    assert read_checkpoint(save(content)).metadata == {"meta": named}


def test_safetensors_are_read(tmp_path):
    save_file(weights(), tmp_path / "model.safetensors", metadata={"epoch": "3"})
    checkpoint = read_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.state_dict.keys() == weights().keys()
    assert checkpoint.metadata == {"epoch": "3"}


def test_files_saved_without_checksums_are_read(path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path).state_dict.keys() == weights().keys()


def test_reading_leaves_no_trace_in_torch(save):
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(save(weights()))
    refusal(save({"a": Call(os.getcwd)}))
    assert set(torch.serialization.get_safe_globals()) == before


def test_weights_that_are_not_finite_are_read_and_listed(save):
    content = weights() | {"nan": torch.tensor([1.0, float("nan")]), "inf": torch.tensor([float("inf")])}
    assert nonfinite_keys(read_checkpoint(save(content)).state_dict) == ["nan", "inf"]


# --- What is no checkpoint ---


def test_missing_file(path):
    assert "does not exist" in refusal(path)


def test_directory(tmp_path):
    assert "is a directory" in refusal(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_is_not_waited_for(path):
    os.mkfifo(path)
    assert "not a regular file" in refusal(path)


def test_permission_denied(path, monkeypatch):
    torch.save(weights(), path)

    def deny(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)  # the tests may run as root, whom no file mode stops
    assert "cannot be opened: Permission denied" in refusal(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>", "looks like a web page"),
        (b"<HTML>\x00", "looks like a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "run `git lfs pull`"),
        (b"click here\nfor more\n", "is a text file"),
        (b"cposix\nsystem\n(S'true'\ntR.", "is a text file"),
        (b"\x00" * 100, "not a PyTorch checkpoint"),
        (b"PK\x03\x04 and no more", "not a PyTorch checkpoint"),
        (random.Random(0).randbytes(3000), "not a PyTorch checkpoint"),
    ],
)
def test_files_that_are_something_else(path, content, said):
    path.write_bytes(content)
    assert said in refusal(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_truncated_file(save, kept):
    path = save({"model": weights()})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    assert "damaged, incomplete" in refusal(path)


def test_damaged_weights_are_told_by_their_checksum(path):
    torch.save({"a": torch.full((100,), 3.0)}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(torch.full((100,), 3.0).numpy().tobytes(), bytes(400)))
    assert path.read_bytes() != content
    assert "wrong checksum" in refusal(path)


def test_zip_that_is_no_checkpoint(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.pth", b"inside")
    assert "without a checkpoint" in refusal(path)


def test_torchscript_archive(path):
    torch.save(weights(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/constants.pkl", b"")  # what torch.load, too, knows them by
    assert "is a TorchScript archive" in refusal(path)


def test_newer_pickle_protocol(path):
    torch.save(weights(), path, pickle_protocol=4)
    assert "save it with protocol 2" in refusal(path)


def test_file_without_tensors_lists_its_entries(save):
    message = refusal(save({"epoch": 3, "model": {"type": "x"}}))
    assert message == " holds no weights; its entries are: `epoch`, `model`"


@pytest.mark.parametrize(("content", "kind"), [([1, 2], "list"), (torch.ones(2), "Tensor"), (None, "NoneType")])
def test_file_that_is_no_dict(save, content, kind):
    assert f"holds no weights but a single <{kind}>" in refusal(save(content))


def test_weight_that_is_no_tensor(save):
    path = save({"model": {"a": torch.ones(1), "b": 3}})
    assert "holds `b` among its weights, <int> and not a tensor" in refusal(path)


def test_weight_without_a_name(save):
    assert "names a weight by <int>" in refusal(save({7: torch.ones(1)})).replace("`", "")


def test_names_in_a_message_stay_on_one_short_line(save):
    message = refusal(save({"\x1b[31m\n" + "x" * 10_000: 3}))
    assert r"`\x1b[31m\nxxx" in message and len(message) < 200


# --- What asks to run something ---


def nested(call):
    """The places where a call can hide."""
    return {
        "alone": call,
        "tuple": (1, (call,)),
        "list": [torch.ones(1), [call]],
        "value": {"model": {"a": torch.ones(1)}, "config": {"x": call}},
        "key": {"model": {"a": torch.ones(1)}, Hashable(call): 1},
        "state dict": {"model": {"a": call}},
    }


class Hashable(tuple):
    """A tuple of one call, which pickles as that call."""

    def __new__(cls, call):
        return super().__new__(cls, (id(call),))

    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call.__reduce__()


@pytest.mark.parametrize("place", nested(None))
def test_os_system_is_refused_by_name_wherever_it_hides(save, tmp_path, place):
    marker = tmp_path / "marker"
    path = save(nested(Call(os.system, f"touch {marker}"))[place])
    message = refusal(path)
    assert f"asks to run `{os.system.__module__}.system`" in message and "nothing was executed" in message
    assert not marker.exists()


def test_instructions_under_another_spelling_are_read_too(path):
    """Torch finds its records in upper case as well."""
    torch.save({"a": Call(os.getcwd)}, path)
    rewrite_pickle(path, read_pickle(path), "DATA.PKL")
    assert "getcwd`, which no checkpoint needs" in refusal(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_os_system_is_refused_in_a_bare_pickle(path, tmp_path, protocol):
    marker = tmp_path / "marker"
    path.write_bytes(pickle.dumps(Call(os.system, f"touch {marker}"), protocol=protocol))
    assert f"`{os.system.__module__}.system`" in refusal(path)
    assert not marker.exists()


ATTACKS = [
    (builtins.eval, "1"),
    (builtins.exec, "1"),
    (builtins.__import__, "os"),
    (builtins.getattr, torch.Size, "mro"),
    (builtins.open, "marker", "w"),
    (operator.attrgetter, "__class__"),
    (operator.methodcaller, "system", "true"),
    (subprocess.Popen, "true"),
    (torch.load, "other.pth"),
    (torch.hub.load, "owner/name", "model"),
    (torch.storage._load_from_bytes, b""),
    (torch.jit.load, "other.pth"),
    (torch.Tensor, 10**12),
    (builtins.bytearray, 10**12),
    (np.load, "other.npy"),
    (copyreg._reconstructor, object, object, None),
    (types.SimpleNamespace,),
]


@pytest.mark.parametrize(("function", "arguments"), [(function, rest) for function, *rest in ATTACKS])
def test_other_globals_are_refused_by_name(save, function, arguments):
    message = refusal(save({"model": weights(), "x": Call(function, *arguments)}))
    assert f"{function.__qualname__}`, which no checkpoint needs" in message


def test_a_global_looked_up_through_the_memo_is_refused(path):
    names = b"\x8c\x05posix\x94\x8c\x06system\x94" + b"\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94"
    path.write_bytes(b"\x80\x04" + names + b"0000" + b"h\x00h\x01\x93" + b"\x8c\x04true\x85R.")
    assert refusal(path)


def test_a_name_that_python_2_used_cannot_smuggle_a_global(path):
    path.write_bytes(b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.")
    assert "`builtins.eval`" in refusal(path)


@pytest.fixture
def config_class(monkeypatch):
    """A class that pickles as yacs's does, a dict with attributes, without yacs."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    return module.CfgNode


HOSTILE_ATTRIBUTES = {"__class__": torch.Size, "__iter__": set, "items": torch.Size, "keys": torch.Size, "get": set}


def test_attributes_of_a_config_cannot_change_what_it_is(save, config_class):
    node = Call(config_class, items=[("x", 1)], state=HOSTILE_ATTRIBUTES)
    assert read_checkpoint(save({"model": weights(), "config": node})).metadata == {"config": {"x": 1}}


def test_attributes_of_the_state_dict_cannot_change_what_it_is(save):
    state_dict = Call(collections.OrderedDict, items=weights().items(), state=HOSTILE_ATTRIBUTES)
    assert read_checkpoint(save({"model": state_dict})).state_dict.keys() == weights().keys()


def test_slots_of_a_namespace_are_not_set(save):
    args = Call(argparse.Namespace, state=(None, {"__class__": collections.OrderedDict}))
    metadata = read_checkpoint(save({"model": weights(), "args": args})).metadata
    assert metadata == {"args": [None, {"__class__": "<type>"}]}


def test_numpy_cannot_be_made_to_read_objects_from_bytes(save):
    kind = Call(np.dtype, "O8", state=(3, "|", None, None, None, -1, -1, 63))  # its numbers are addresses of objects
    scalar = Call(np.float64(0).__reduce__()[0], kind, b"\x01" * 8)
    assert read_checkpoint(save({"model": weights(), "meta": scalar})).metadata == {"meta": "<NumpyArray>"}


@pytest.mark.parametrize("name", ["../../escaped", "model/../../escaped", "{tmp_path}/escaped"])
def test_names_that_climb_out_of_the_archive_write_nothing(path, tmp_path, name):
    torch.save(weights(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name.format(tmp_path=tmp_path), b"x")
    assert_read_or_refused(path)
    assert list(tmp_path.iterdir()) == [path] and not (tmp_path.parent.parent / "escaped").exists()


# --- What would exhaust the machine ---


def test_compressed_archive_is_not_unpacked(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(50_000_000))
    assert "is compressed" in refusal(path)


def test_archive_that_claims_a_huge_record(path):
    torch.save(weights(), path)
    content = path.read_bytes()
    header = content.rindex(b"PK\x01\x02")
    path.write_bytes(content[: header + 20] + b"\xf0\xff\xff\xff" * 2 + content[header + 28 :])
    assert refusal(path)


def test_tensor_that_claims_more_than_the_file_holds(save):
    assert "claims more data for `a`" in refusal(save({"a": torch.ones(1).expand(2**40)}))


def test_tuples_nested_without_end_do_not_overflow_the_stack(path):
    torch.save(weights(), path)
    rewrite_pickle(path, b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s.")
    assert "nests more data" in refusal(path)


def test_metadata_that_contains_itself(save):
    endless = []
    endless.append(endless)
    assert "<too much>" in json.dumps(read_checkpoint(save({"model": weights(), "meta": endless})).metadata)


def test_metadata_that_grows_tenfold_with_each_level(save):
    laughs = "ha"
    for _ in range(30):
        laughs = [laughs] * 10
    metadata = read_checkpoint(save({"model": weights(), "meta": laughs})).metadata
    assert len(json.dumps(metadata)) < 10_000_000


# --- Whatever else ---


def damaged(content, generator):
    """Flip, cut, repeat or replace some bytes."""
    content = bytearray(content)
    start = generator.randrange(len(content))
    stop = start + generator.randrange(1, 9)
    kind = generator.choice(["flip", "cut", "drop", "repeat", "replace"])
    if kind == "flip":
        content[start] ^= 1 << generator.randrange(8)
    elif kind == "cut":
        del content[start:]
    else:
        content[start:stop] = {"drop": b"", "repeat": content[start:stop] * 2}.get(kind, generator.randbytes(4))
    return bytes(content)


def assert_read_or_refused(path):
    try:
        assert isinstance(read_checkpoint(path), Checkpoint)
    except CheckpointError as error:
        assert str(error).isprintable()


@pytest.fixture
def content(config_class):
    config = config_class(x=config_class(y=[1, 2.5]))
    config.flag = True
    meta = {"score": np.float64(0.5), "args": argparse.Namespace(x=1), "table": np.arange(4)}
    return {"model": weights(), "config": config, "meta": meta}


def test_damage_is_read_or_refused(save, content):
    path, generator = save(content), random.Random(0)
    original = path.read_bytes()
    for _ in range(200):
        path.unlink()  # an earlier file may still be mapped
        path.write_bytes(damaged(original, generator))
        assert_read_or_refused(path)


def test_damage_within_the_pickle_is_read_or_refused(path, content):
    """As above for the instructions alone, with right checksums, as a hostile file would have."""
    torch.save(content, path)
    generator, original = random.Random(1), path.read_bytes()
    instructions = read_pickle(path)
    for _ in range(200):
        path.unlink()
        path.write_bytes(original)
        rewrite_pickle(path, damaged(instructions, generator))
        assert_read_or_refused(path)


def test_keyboard_interrupt_goes_through(save, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "load", interrupt)
    path = save(weights())
    with pytest.raises(KeyboardInterrupt):
        read_checkpoint(path)
