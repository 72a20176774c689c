"""Images in the IDX files of MNIST and of the data sets that took over its format, such as Fashion-MNIST."""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import InputError
from .labelled_images import LabelledImage


UNSIGNED_BYTES = 8  # The only type of numbers in these files.
PREFIXES = {"train": "train", "validation": "t10k"}

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
FASHION_MNIST_NAMES = [
    "T-shirt / top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


class IdxImages(Sequence):
    """Grey images of an IDX file with the labels of another.

    Args:
        images: Path of the file of images.
        labels: Path of the file of labels.
    """

    def __init__(self, images: Path, labels: Path):
        self.path, self.images, self.labels = images, read_idx(images, 3), read_idx(labels, 1)
        if len(self.images) != len(self.labels):
            raise InputError(
                f"{images} holds {len(self.images)} images, but {labels} {len(self.labels)} labels: take both files "
                "from the same data set"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> LabelledImage:
        """One image, named after its place in the file."""
        return LabelledImage(
            f"{self.path}[{index}]", Image.fromarray(self.images[index]), int(self.labels[index])
        )  # fmt: skip


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Bytes of an IDX file, compressed with gzip or not, in its shape.

    The header is two zeros, the type of the numbers, the number of dimensions, and each dimension's size (32 bits,
    big-endian): http://yann.lecun.com/exdb/mnist.

    Raises:
        InputError: It is no such file, or not whole.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): fetch it anew") from error
    header = 4 + 4 * dimensions
    shape = np.frombuffer(content, ">i4", offset=4, count=dimensions) if len(content) >= header else ()
    if content[:4] != bytes([0, 0, UNSIGNED_BYTES, dimensions]) or len(content) != header + math.prod(shape):
        raise InputError(f"{path} is no whole IDX file of bytes in {dimensions} dimensions: fetch it anew")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def find_idx_files(folder: Path, split: str) -> tuple[Path, Path] | None:
    """Files of the images and of the labels of a split, `train` or `validation`, or none where they are not."""
    pair = []
    for kind in ("images-idx3", "labels-idx1"):
        stem = f"{PREFIXES[split]}-{kind}-ubyte"
        pair.append(next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None))
    return tuple(pair) if all(pair) else None
