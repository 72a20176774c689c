"""Images of classes come from anywhere, each once, and are varied the same way whoever reads them, and when."""

import gzip
import io
import random
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from support.class_matching import match_classes
from support.classification_data import FASHION_MNIST_FOLDER, ClassificationDataArguments, load_images
from support.classification_datasets import ImageTable, build_dataset, collate
from support.classification_transforms import (
    AUGMENTATIONS,
    EvaluationTransform,
    TrainingTransform,
    build_image_processor,
)
from support.errors import InputError, message_of
from support.variation import seeded
from torch.utils.data import DataLoader, Subset
from torchvision import transforms


NAMES = ["cat", "dog"]
NUM_TRAIN, NUM_HELD_OUT, NUM_SHARDS = 12, 5, 3
COUNTS = {"train": NUM_TRAIN, "validation": NUM_HELD_OUT}
KINDS = ("folders", "parquet", "webdataset")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """`datasets` keeps what it prepares in a folder of the test, and does not rest for seconds after parquet files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)
        datasets.disable_progress_bars()
        yield


def make_image(split: str, index: int) -> Image.Image:
    """Noise; every other image is of the second class."""
    pixels = np.random.default_rng([len(split), index]).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def write_folders(folder: Path, images: list[Image.Image]) -> None:
    for index, image in enumerate(images):
        path = folder / NAMES[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def write_parquet(folder: Path, images: list[Image.Image]) -> None:
    folder.mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    for shard in range(NUM_SHARDS):
        indices = range(shard, len(images), NUM_SHARDS)
        rows = {"image": [images[index] for index in indices], "label": [index % 2 for index in indices]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{shard}.parquet"))


def write_webdataset(folder: Path, images: list[Image.Image]) -> None:
    folder.mkdir(parents=True)
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for index in range(shard, len(images), NUM_SHARDS):
                for suffix, content in (("png", png(images[index])), ("cls", str(index % 2).encode())):
                    entry = tarfile.TarInfo(f"{index:04}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder with the same images in each kind of files; its name has characters that mean something in patterns."""
    root = tmp_path_factory.mktemp("data") / "some [images]"
    for kind, write in zip(KINDS, (write_folders, write_parquet, write_webdataset), strict=True):
        for split, count in COUNTS.items():
            write(root / kind / split, [make_image(split, index) for index in range(count)])
    (root / "names.txt").write_text("cat\ndog\n")
    return root


def arguments_for(data: Path, kind: str, **fields) -> ClassificationDataArguments:
    names = str(data / "names.txt") if kind == "webdataset" and fields.get("streaming") else None
    folders = {f"{split}_dir": str(data / kind / split) for split in COUNTS}
    return ClassificationDataArguments(**{"class_names": names, **folders, **fields})


def to_pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image))


def varied() -> TrainingTransform:
    return TrainingTransform(AUGMENTATIONS["imagenet"], build_image_processor(64), 64)


def batches(dataset, **options) -> list[torch.Tensor]:
    return [batch["pixel_values"] for batch in DataLoader(dataset, batch_size=4, collate_fn=collate, **options)]


def counted(dataset, **options) -> Counter:
    """How often each image comes, by its bits."""
    return Counter(image.numpy().tobytes() for batch in batches(dataset, **options) for image in batch)


# Where images come from


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_all_images_with_their_classes(data, kind, streaming):
    splits = load_images(arguments_for(data, kind, streaming=streaming))
    named = kind != "webdataset" or streaming
    assert splits.names == (NAMES if named else ["0", "1"])
    for split, images in zip(COUNTS, (splits.train, splits.validation), strict=True):
        expected = {(np.array(make_image(split, index)).tobytes(), index % 2) for index in range(COUNTS[split])}
        examples = list(build_dataset(images, to_pixels))
        assert {(example["pixel_values"].numpy().tobytes(), example["labels"]) for example in examples} == expected
        assert len(examples) == COUNTS[split]


def test_pattern_of_files(data, monkeypatch):
    monkeypatch.chdir(data)
    pattern = arguments_for(data, "parquet", train_dir="parquet/train/[01].parquet")
    assert len(load_images(pattern).train) == 8


def test_held_out_share_is_always_the_same(data):
    arguments = arguments_for(data, "folders", validation_dir=None, train_val_split=0.25)
    first, again = load_images(arguments), load_images(arguments)
    names = [[image.name for image in images] for images in (first.train, first.validation)]
    assert (len(names[0]), len(names[1])) == (9, 3)
    assert not set(names[0]) & set(names[1])
    assert [image.name for image in again.validation] == names[1]


def test_limits_take_images_of_all_classes(data):
    splits = load_images(arguments_for(data, "folders", max_train_samples=6, max_eval_samples=2))
    assert (len(splits.train), len(splits.validation)) == (6, 2)
    assert {image.label for image in splits.train} == {0, 1}
    stream = load_images(arguments_for(data, "webdataset", streaming=True, max_eval_samples=2)).validation
    assert len(list(build_dataset(stream, to_pixels))) == 2


def test_saved_data_set_with_names_as_labels(tmp_path):
    rows = {"picture": [make_image("train", index) for index in range(6)], "kind": ["b", "a", "c", "a", "b", "c"]}
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.Value("string")})
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})
    splits["test"] = splits["train"].select([0, 1])
    splits.save_to_disk(tmp_path / "saved")
    arguments = ClassificationDataArguments(dataset_name=str(tmp_path / "saved"), label_column_name="kind")
    loaded = load_images(arguments)
    assert loaded.names == ["a", "b", "c"]
    assert [image.label for image in loaded.train] == [1, 0, 2, 0, 1, 2]
    assert len(loaded.validation) == 2


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes() + array.tobytes()


def write_idx(folder: Path, compressed: bool = True) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    for prefix, part in (("train", images[:14]), ("t10k", images[14:])):
        labels = np.arange(len(part), dtype=np.uint8) % 10
        for kind, array in (("images-idx3", part), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{kind}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if compressed else idx(array))
    return images


@pytest.mark.parametrize("compressed", [True, False])
def test_idx_files(tmp_path, compressed):
    images = write_idx(tmp_path, compressed)
    splits = load_images(ClassificationDataArguments(dataset_name="fashion_mnist", train_dir=str(tmp_path)))
    assert (len(splits.train), len(splits.validation), splits.names[9]) == (14, 6, "Ankle boot")
    image = splits.validation[3]
    assert image.label == 3 and image.open().mode == "RGB"
    assert np.array_equal(np.array(image.open())[..., 1], images[17])
    plain = load_images(ClassificationDataArguments(train_dir=str(tmp_path)))
    assert plain.names == [str(digit) for digit in range(10)]


@pytest.mark.skipif(not FASHION_MNIST_FOLDER.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian():
    splits = load_images(ClassificationDataArguments(dataset_name="fashion_mnist"))
    assert (len(splits.train), len(splits.validation)) == (60_000, 10_000)
    assert np.bincount([splits.validation[index].label for index in range(10_000)]).tolist() == [1000] * 10


# Varied the same way whoever reads them


@pytest.fixture(scope="module")
def images(data):
    return load_images(arguments_for(data, "folders")).train


def test_workers_do_not_matter(images):
    dataset = ImageTable(images, varied(), seed=7)
    alone = torch.cat(batches(dataset))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(torch.cat(batches(dataset, num_workers=2)), alone)
    assert not torch.equal(torch.cat(batches(ImageTable(images, varied(), seed=8))), alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_part_of_an_epoch_is_as_in_the_whole(images, workers):
    dataset = ImageTable(images, varied(), seed=7)
    dataset.set_epoch(3)
    whole = torch.cat(batches(dataset))
    resumed = ImageTable(images, varied(), seed=7)
    resumed.set_epoch(3)
    rest = Subset(resumed, range(5, NUM_TRAIN))
    assert torch.equal(torch.cat(batches(rest, num_workers=workers)), whole[5:])


def test_epoch_reaches_workers_that_live_on(images):
    dataset = ImageTable(images, varied(), seed=7)
    loader = DataLoader(dataset, batch_size=4, collate_fn=collate, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        epochs.append(torch.cat([batch["pixel_values"] for batch in loader]))
    alone = ImageTable(images, varied(), seed=7)
    alone.set_epoch(1)
    assert torch.equal(epochs[1], torch.cat(batches(alone)))
    assert not torch.equal(epochs[0], epochs[1])


def draw() -> tuple:
    return random.random(), np.random.rand(), float(torch.rand(()))


def test_random_numbers_around_it_are_left_as_they_were():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with pytest.raises(ZeroDivisionError), seeded(1, 2):
        first = draw()
        raise ZeroDivisionError
    assert draw() == expected
    with seeded(1, 2):
        assert draw() == first


# Streams


@pytest.fixture(scope="module", params=KINDS)
def stream(request, data):
    return load_images(arguments_for(data, request.param, streaming=True)).train


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_and_processes_give_each_image_once_and_the_same(stream):
    def dataset(rank=0, count=1):
        dataset = build_dataset(stream, varied(), 7, shuffle_buffer_size=5, process_index=rank, num_processes=count)
        dataset.set_epoch(2)
        return dataset

    alone = counted(dataset())
    assert sum(alone.values()) == len(alone) == NUM_TRAIN
    assert counted(dataset(), num_workers=2) == alone
    assert counted(dataset(), num_workers=NUM_SHARDS + 1) == alone
    for workers in (0, 2):
        assert sum((counted(dataset(rank, 2), num_workers=workers) for rank in range(2)), Counter()) == alone


def test_each_epoch_has_its_own_order(stream):
    def labels_and_pixels(epoch):
        dataset = build_dataset(stream, to_pixels, 7, shuffle_buffer_size=5)
        dataset.set_epoch(epoch)
        return [example["pixel_values"].numpy().tobytes() for example in dataset]

    first, second = labels_and_pixels(0), labels_and_pixels(1)
    assert first == labels_and_pixels(0) and first != second and sorted(first) == sorted(second)


def test_endless_stream_is_one_epoch_after_the_other(stream):
    endless = iter(build_dataset(stream, varied(), 7, shuffle_buffer_size=5, endless=True))
    for epoch in range(3):
        dataset = build_dataset(stream, varied(), 7, shuffle_buffer_size=5)
        dataset.set_epoch(epoch)
        for expected in dataset:
            assert torch.equal(next(endless)["pixel_values"], expected["pixel_values"])


def test_endless_stream_ends_where_there_is_nothing(stream):
    empty = stream.rows.take(0)
    assert list(build_dataset(type(stream)(empty, stream.reader), varied(), endless=True)) == []


# Transforms


def test_recipe_is_the_original_one():
    names = [type(step).__name__ for step in varied().transform.transforms]
    assert names[:3] == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment"]
    assert names[-1] == "RandomErasing"
    policy, erasing = varied().transform.transforms[2], varied().transform.transforms[-1]
    assert {(op.magnitude, op.magnitude_std, op.prob) for op in policy.ops} == {(9, 0.5, 0.5)}
    assert (erasing.probability, erasing.per_pixel) == (0.25, True)
    jitter = TrainingTransform(
        type(AUGMENTATIONS["imagenet"])(auto_augment=None), build_image_processor(64), 64
    ).transform.transforms[2]
    assert tuple(jitter.brightness) == (0.6, 1.4)


def test_policy_may_keep_no_bits_of_a_colour():
    operations = [op for op in varied().transform.transforms[2].ops if op.name.startswith("Posterize")]
    assert operations
    image = make_image("train", 0)
    for operation in operations:
        operation.prob, operation.magnitude, operation.magnitude_std = 1.0, 10, 0
        assert operation(image).size == image.size
    assert not np.array(operations[-1].aug_fn(image, 0)).any()
    assert np.array_equal(np.array(operations[-1].aug_fn(image, 4)), np.array(image) // 16 * 16)


def test_small_images_are_padded_and_cropped():
    transform = TrainingTransform(AUGMENTATIONS["light"], build_image_processor(32), 32)
    crop = transform.transform.transforms[1]
    assert (crop.size, crop.padding) == ((32, 32), 4)
    assert transform(Image.new("RGB", (28, 28))).shape == (3, 32, 32)


@pytest.mark.parametrize("size", [32, 64])
def test_without_augmentation_images_are_those_of_evaluation(size):
    image, processor = make_image("train", 0).resize((size, size)), build_image_processor(32)
    expected = EvaluationTransform(processor, size)(image)
    torch.testing.assert_close(TrainingTransform(AUGMENTATIONS["none"], processor, size)(image), expected)
    mirrored = [TrainingTransform(AUGMENTATIONS["flip"], processor, size)(image) for _ in range(20)]
    for pixels in mirrored:
        assert any(torch.allclose(pixels, either, atol=1e-5) for either in (expected, expected.flip(-1)))
    assert len({pixels.sum((0, 1)).argmax().item() for pixels in mirrored}) == 2


@pytest.mark.parametrize("size", [64, 160, 224, 256])
def test_evaluation_is_the_original_one(size):
    image = make_image("train", 0).resize((300, 333))
    original = transforms.Compose(
        [
            transforms.Resize(int(256 / 224 * size), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    for own_size in (224, size):
        transform = EvaluationTransform(build_image_processor(own_size), size)
        torch.testing.assert_close(transform(image), original(image), rtol=0, atol=1e-5)


def test_grey_images_for_models_of_one_channel():
    processor = build_image_processor(32, num_channels=1)
    grey = Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).convert("RGB")
    expected = (np.arange(1024, dtype=np.uint8).reshape(1, 32, 32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(EvaluationTransform(processor)(grey), expected, atol=1e-5)
    assert TrainingTransform(AUGMENTATIONS["imagenet"], processor, 32)(grey).shape == (1, 32, 32)


# Broken images


@pytest.fixture
def broken(data, tmp_path):
    """Folder of classes with a file that is no image, and one that is cut short."""
    write_folders(tmp_path / "images", [make_image("train", index) for index in range(8)])
    (tmp_path / "images" / "cat" / "0.png").write_text("no image")
    (tmp_path / "images" / "dog" / "3.png").write_bytes(png(make_image("train", 3))[:2000])
    return tmp_path / "images"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_named(broken, streaming, workers):
    arguments = ClassificationDataArguments(train_dir=str(broken), validation_dir=str(broken), streaming=streaming)
    dataset = build_dataset(load_images(arguments).train, to_pixels)
    with pytest.raises(InputError) as caught:
        batches(dataset, num_workers=workers)
    message = message_of(caught.value)
    assert message.startswith("`image` of train[0] (") and "0.png) cannot be read as an image" in message
    assert message.endswith("--skip_broken_images)") and "\n" not in message.strip()


@pytest.mark.parametrize("streaming", [False, True])
def test_broken_images_are_skipped_when_told_to(broken, streaming, capsys):
    arguments = ClassificationDataArguments(
        train_dir=str(broken), validation_dir=str(broken), streaming=streaming, skip_broken_images=True
    )
    dataset = build_dataset(load_images(arguments).train, to_pixels, skip_broken=True)
    assert len(list(dataset)) == 6
    said = capsys.readouterr().err
    assert "skipped: `image` of train[0]" in said and "3.png" in said


def test_no_image_can_be_used(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("")
    arguments = ClassificationDataArguments(
        train_dir=str(tmp_path), validation_dir=str(tmp_path), skip_broken_images=True
    )
    with pytest.raises(InputError, match="none of the 2 training images can be used"):
        load_images(arguments)


# What a user can mend


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"train_val_split": 1.5}, "--train_val_split is 1.5"),
        ({"max_train_samples": 0}, "--max_train_samples is 0"),
    ],
)
def test_illegal_values(fields, message):
    with pytest.raises(ValueError, match=message):
        ClassificationDataArguments(**fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "no images are given"),
        ({"train_dir": "/nowhere"}, "--train_dir is /nowhere, which is neither a folder nor a pattern"),
        ({"dataset_name": "/nowhere"}, "/nowhere cannot be loaded by `datasets`"),
        ({"dataset_name": "fashion_mnist", "train_dir": "/nowhere"}, "--train_dir is /nowhere, which does not hold"),
    ],
)
def test_nothing_there(fields, message):
    with pytest.raises(InputError, match=message):
        load_images(ClassificationDataArguments(**fields))


@pytest.mark.parametrize(
    "kind, fields, message",
    [
        ("parquet", {"image_column_name": "photo"}, "--image_column_name is photo.* give one of image, label"),
        ("parquet", {"image_column_name": "label"}, "--image_column_name is label, which holds no images"),
        ("parquet", {"label_column_name": "kind"}, "--label_column_name is kind"),
        ("parquet", {"label_column_name": "image"}, "labels are numbers or names, not of type Image"),
        ("webdataset", {"streaming": True, "class_names": None}, "column cls have no names"),
        ("folders", {"streaming": True, "validation_dir": None}, "no images are held out"),
        ("folders", {"validation_dir": None, "train_val_split": 0.01}, "--train_val_split is 0.01, which leaves"),
    ],
)
def test_columns_and_splits(data, kind, fields, message):
    with pytest.raises(InputError, match=message):
        load_images(arguments_for(data, kind, **fields))


def test_folders_of_two_kinds(data):
    arguments = arguments_for(data, "folders", validation_dir=str(data / "parquet" / "validation"))
    with pytest.raises(InputError, match="both must be of one kind"):
        load_images(arguments)


def test_label_that_is_no_class(data, tmp_path):
    (tmp_path / "names.txt").write_text("cat\n")
    splits = load_images(arguments_for(data, "webdataset", class_names=str(tmp_path / "names.txt")))
    with pytest.raises(InputError, match="has the label 1, but there are 1 classes"):
        [image.label for image in splits.train]


def test_broken_idx_files(tmp_path):
    write_idx(tmp_path)
    images, labels = (tmp_path / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    arguments = ClassificationDataArguments(train_dir=str(tmp_path))
    content = images.read_bytes()
    for broken in (content[:-200], b"nothing", gzip.compress(gzip.decompress(content)[:-1]), gzip.compress(b"")):
        images.write_bytes(broken)
        with pytest.raises(InputError, match="train-images-idx3-ubyte.gz .*: fetch it anew"):
            load_images(arguments)
    images.write_bytes(content)
    labels.write_bytes(gzip.compress(idx(np.zeros(3, dtype=np.uint8))))
    with pytest.raises(InputError, match="holds 14 images, but .* 3 labels"):
        load_images(arguments)


# Which class is which


def test_classes_are_matched_by_name():
    assert match_classes(["Dog", "cat ", "cow"], ["cat", "dog"]) == [1, 0]
    assert match_classes(["LABEL_0", "LABEL_1"], ["cat", "dog"]) == [0, 1]
    assert match_classes(["tench", "goldfish", "shark"], ["0", "1"]) == [0, 1]
    for names in (["cat", "sheep"], ["a", "b"], ["0", "1", "2", "3"]):
        with pytest.raises(InputError, match="are not among the model's 3"):
            match_classes(["dog", "cat", "cow"], names)
