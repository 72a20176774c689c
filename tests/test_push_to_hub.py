"""Uploading a converted folder, against a stand-in for the Hub; a folder that is not whole never gets there."""

import json
import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from safetensors.torch import load_file, save_file

from conversion import uploading
from conversion.push_to_hub import main


@pytest.fixture
def hub(monkeypatch):
    """Record what is asked of the Hub; `failure` is raised by the upload."""
    asked = SimpleNamespace(calls=[], failure=None)

    class StandInApi:
        def create_repo(self, repo_id, **options):
            asked.calls.append(("create_repo", repo_id, options))
            if asked.failure:
                raise asked.failure
            return SimpleNamespace(repo_id=f"someone/{repo_id.split('/')[-1]}")

        def create_branch(self, repo_id, **options):
            asked.calls.append(("create_branch", repo_id, options))

        def upload_folder(self, **options):
            asked.calls.append(("upload_folder", options.pop("repo_id"), options))

    monkeypatch.setattr(uploading, "HfApi", StandInApi)
    monkeypatch.setattr(uploading, "get_token", lambda: "a token")
    return asked


@pytest.fixture
def folder(converted, tmp_path):
    """A copy of a converted folder."""
    return shutil.copytree(converted, tmp_path / "model")


def test_upload(hub, folder, capsys):
    assert main([str(folder), "crossformer-micro"]) == 0
    assert [call[:2] for call in hub.calls] == [
        ("create_repo", "crossformer-micro"),
        ("upload_folder", "someone/crossformer-micro"),
    ]
    assert hub.calls[0][2] == {"private": None, "exist_ok": True}
    assert hub.calls[1][2]["folder_path"] == folder and hub.calls[1][2]["revision"] is None
    assert capsys.readouterr().out == "uploaded to https://huggingface.co/someone/crossformer-micro\n"


def test_private_and_a_branch(hub, folder):
    assert main([str(folder), "someone/a", "--private", "--revision", "draft"]) == 0
    assert hub.calls[0][2]["private"] is True
    assert hub.calls[1] == ("create_branch", "someone/a", {"branch": "draft", "exist_ok": True})
    assert hub.calls[2][2]["revision"] == "draft"


@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        (HFValidationError("Repo id must\nuse alphanumeric chars"), "'a' is no repository name: Repo id must use"),
        (OfflineModeIsEnabled("Cannot reach the Hub: offline mode is enabled."), "the Hub cannot be reached (Cannot"),
        (RuntimeError("timed out"), "the Hub cannot be reached (timed out)"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_failures(hub, folder, capsys, failure, problem):
    hub.failure = failure
    assert main([str(folder), "a"]) == (2 if isinstance(failure, KeyboardInterrupt) else 1)
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and problem in printed


def test_the_hub_refuses(hub, folder, capsys, monkeypatch):
    class Refused(Exception):
        """As `HfHubHTTPError`, which takes a response of the network library that the Hub's version uses."""

    monkeypatch.setattr(uploading, "HfHubHTTPError", Refused)
    hub.failure = Refused("403 Forbidden")
    assert main([str(folder), "a"]) == 1
    assert "the Hub refused: 403 Forbidden; may your token write there?" in capsys.readouterr().err


def test_without_a_token(hub, folder, capsys, monkeypatch):
    monkeypatch.setattr(uploading, "get_token", lambda: None)
    assert main([str(folder), "a"]) == 1
    assert "run `hf auth login`" in capsys.readouterr().err
    assert not hub.calls


def lose_the_code(folder):
    (folder / "modeling_crossformer.py").unlink()


def lose_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.bias"]
    save_file(weights, folder / "model.safetensors")


def truncate_the_weights(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def widen_the_model(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "embed_dim": 32}))


def break_the_configuration(folder):
    (folder / "config.json").write_text('{"embed_dim": 16')


def break_a_rule(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_heads": [1, 2, 3]}))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lose_the_code, "lacks modeling_crossformer.py"),
        (lose_a_weight, "weights and config.json do not fit: classifier.bias"),
        (truncate_the_weights, "model.safetensors is damaged"),
        (widen_the_model, "weights and config.json do not fit"),
        (break_the_configuration, "config.json is no configuration"),
        (break_a_rule, "`num_heads` is [1, 2, 3]"),
        (shutil.rmtree, "lacks config.json, model.safetensors"),
    ],
)
def test_a_folder_that_is_not_whole_is_not_uploaded(hub, folder, capsys, damage, problem):
    damage(folder)
    assert main([str(folder), "a"]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and problem in printed
    assert not hub.calls
