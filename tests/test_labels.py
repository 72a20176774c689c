"""Class names: ImageNet's in the right order, those in a file, and files that do not name each class."""

import json

import pytest

from conversion.command import ConversionError
from conversion.labels import class_names


CLASSIFY, SEGMENT, DETECT = "image-classification", "semantic-segmentation", "object-detection"


def test_imagenet():
    names = class_names(1000, CLASSIFY)
    assert len(set(names)) == 1000
    assert names[0] == "tench, Tinca tinca"
    assert names[1] == "goldfish, Carassius auratus"
    assert names[999].startswith("toilet tissue")
    assert (names[134], names[517]) == ("crane (134)", "crane (517)")


def test_ade20k():
    names = class_names(150, SEGMENT)
    assert len(set(names)) == 150
    assert [names[index] for index in (0, 12, 75, 149)] == ["wall", "person", "swivel chair", "flag"]


def test_coco():
    names = class_names(80, DETECT)
    assert len(set(names)) == 80
    assert [names[index] for index in (0, 11, 12, 79)] == ["person", "stop sign", "parking meter", "toothbrush"]


def test_the_task_decides_which_data_set_it_is():
    assert class_names(150, CLASSIFY)[0] == class_names(1000, SEGMENT)[0] == "LABEL_0"


def test_other_numbers_have_no_names():
    assert class_names(3, CLASSIFY) == ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '["cat", "dog", "fish"]'),
        ("a.json", '{"2": "fish", "0": "cat", "1": "dog"}'),
        ("a.txt", '{"0": "cat", "1": "dog", "2": "fish"}'),
        ("a.txt", "cat\ndog\n\nfish\n"),
        ("a.txt", "\ufeffcat\r\n dog \r\nfish"),
    ],
)
def test_files(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert class_names(3, CLASSIFY, tmp_path / name) == ["cat", "dog", "fish"]


def test_a_file_takes_precedence_over_imagenet(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([f"class {index}" for index in range(1000)]))
    assert class_names(1000, CLASSIFY, tmp_path / "a.json")[7] == "class 7"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"cat\ndog", "names 2 classes, but the checkpoint's head has 3"),
        (b'{"0": "cat", "1": "dog", "3": "fish"}', "no JSON object of the ids"),
        (b'["cat", "dog", 3]', "something else than names"),
        (b'["cat", "dog"', "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe\x00\x01", "no text file"),
        (b"", "names 0 classes"),
    ],
)
def test_bad_files(tmp_path, content, problem):
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=problem) as caught:
        class_names(3, CLASSIFY, path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
