"""Downloading released checkpoints, against a stand-in for gdown."""

import os
import shutil
import sys
from types import SimpleNamespace

import pytest
from golden import DATA

from conversion.checkpoint import read_checkpoint
from conversion.command import ConversionError
from conversion.convert_crossformer import main
from conversion.download import download
from conversion.variants import VARIANTS


MICRO = DATA / "checkpoint-pp-micro-main.pth"


@pytest.fixture
def deliver(tmp_path, monkeypatch):
    """Make gdown deliver a file, None or an exception; returns the ids that it was asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def deliver(content):
        asked = []

        def fetch(id: str, output: str):
            asked.append(id)
            if isinstance(content, Exception):
                raise content
            return content and shutil.copyfile(content, output)

        monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=fetch))
        return asked

    return deliver


def cached(tmp_path) -> list[str]:
    return os.listdir(tmp_path / "crossformer-hf")


def test_it_is_fetched_once(tmp_path, deliver):
    asked = deliver(MICRO)
    for _ in range(2):
        path = download(VARIANTS["crossformer-s"])
    assert asked == ["1RAkigsgr33va0RZ85S2Shs2BhXYcS6U8"]
    assert read_checkpoint(path).state_dict.keys() == read_checkpoint(MICRO).state_dict.keys()
    assert cached(tmp_path) == ["crossformer-s.pth"]


@pytest.mark.parametrize("content", [None, ConnectionError("no route\nto host"), RuntimeError("quota")])
def test_it_does_not_arrive(tmp_path, deliver, content):
    deliver(content)
    with pytest.raises(
        ConversionError, match="crossformer-s did not arrive.*; download https://drive.* by hand"
    ) as caught:
        download(VARIANTS["crossformer-s"])
    assert "\n" not in str(caught.value)
    assert cached(tmp_path) == []


def test_a_web_page_arrives(tmp_path, deliver):
    (tmp_path / "page").write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    deliver(tmp_path / "page")
    with pytest.raises(ConversionError, match="looks like a web page"):
        download(VARIANTS["crossformer-s"])
    assert cached(tmp_path) == []


def test_baidu_takes_a_browser(deliver, tmp_path, capsys):
    asked = deliver(MICRO)
    assert main(["--variant", "crossformer-pp-b", "--download", "--output", str(tmp_path / "model")]) == 1
    printed = capsys.readouterr().err
    assert "published on Baidu only" in printed and "https://pan.baidu.com/s/13XVP0ebtNcyRMmkl11ALYg" in printed
    assert "(key crsf)" in printed and "by hand" in printed
    assert not asked and not (tmp_path / "model").exists()


def test_without_gdown(deliver, monkeypatch):
    deliver(MICRO)
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(ConversionError, match=r'pip install "crossformer-hf\[convert\]"'):
        download(VARIANTS["crossformer-s"])


def test_what_was_fetched_is_converted(deliver, tmp_path, capsys):
    deliver(MICRO)  # which is not CrossFormer-S
    assert main(["--variant", "crossformer-s", "--download", "--output", str(tmp_path / "model")]) == 1
    assert "the weights do not fit this architecture" in capsys.readouterr().err
