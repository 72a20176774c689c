"""Images with labels as tensors, in tables and streams, each varied the same way whoever reads it, and when."""

import zlib
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import torch
from datasets import IterableDataset as HubStream
from datasets.distributed import split_dataset_by_node
from torch.utils.data import Dataset, IterableDataset

from .classification_transforms import Transform
from .errors import InputError, say
from .labelled_images import LabelledImage, StreamedImages
from .variation import VariedExamples, seeded


class VariedImages(VariedExamples):
    """What turns an image into an example, anew in each epoch.

    Args:
        transform: Image to pixel values.
        seed: Seed of the run.
    """

    def __init__(self, transform: Transform, seed: int):
        super().__init__(seed)
        self.transform = transform

    def example(self, image: LabelledImage, epoch: int, index: int) -> dict:
        """Pixel values (channels, height, width) and label.

        Raises:
            InputError: The image is broken.
        """
        opened = image.open()
        with seeded(self.seed, epoch, index):
            return {"pixel_values": self.transform(opened), "labels": image.label}


def with_way_out(error: InputError) -> InputError:
    """The error of a broken image, and how to go on without it."""
    return InputError(f"{error} (or go on without it: --skip_broken_images)")


class ImageTable(VariedImages, Dataset):
    """Examples by index.

    Args:
        images: The images.
        transform: Image to pixel values.
        seed: Seed of the run.
    """

    def __init__(self, images: Sequence[LabelledImage], transform: Transform, seed: int = 0):
        super().__init__(transform, seed)
        self.images = images

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        """One example.

        Raises:
            InputError: The image or its label is broken.
        """
        try:
            return self.example(self.images[index], int(self.epoch), index)
        except InputError as error:
            raise with_way_out(error) from error


class ImageStream(VariedImages, IterableDataset):
    """Examples of a stream, each once in an epoch in all processes and workers together.

    Files are divided among processes and among the workers of each, of which all must have as many; where files
    cannot be divided evenly, processes take turns. An example has no index, so its content stands for it.

    Args:
        images: The images.
        transform: Image to pixel values.
        seed: Seed of the run.
        shuffle_buffer_size: Number of images from which the next one is drawn; 0 for the order of the files.
        skip_broken: Whether broken images are said and left out.
        process_index: Rank of this process.
        num_processes: Number of processes.
        endless: Whether one epoch follows the other, so that no process comes to an end before others do.
    """

    def __init__(
        self,
        images: StreamedImages,
        transform: Transform,
        seed: int = 0,
        shuffle_buffer_size: int = 0,
        skip_broken: bool = False,
        process_index: int = 0,
        num_processes: int = 1,
        endless: bool = False,
    ):
        super().__init__(transform, seed)
        self.images, self.shuffle_buffer_size, self.skip_broken = images, shuffle_buffer_size, skip_broken
        self.process_index, self.num_processes, self.endless = process_index, num_processes, endless

    def __iter__(self) -> Iterator[dict]:
        """The examples of this process and worker."""
        first = int(self.epoch)
        for epoch in count(first) if self.endless else [first]:
            is_empty = True
            for example in self.examples(epoch):
                yield example
                is_empty = False
            if is_empty:  # There are more workers than files.
                return

    def examples(self, epoch: int) -> Iterator[dict]:
        """Those of one epoch.

        Raises:
            InputError: An image is broken, and is not to be left out.
        """
        for index, row in enumerate(self.rows(epoch)):
            try:
                image = self.images.read(row, index)
                yield self.example(image, epoch, zlib.crc32(image.image.getvalue()))
            except InputError as error:
                if not self.skip_broken:
                    raise with_way_out(error) from error
                say(f"skipped: {error}")

    def rows(self, epoch: int) -> HubStream:
        """The rows of this process in the order of one epoch; `datasets` divides them among workers."""
        rows = self.images.rows
        if self.shuffle_buffer_size:
            seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
            rows = rows.shuffle(seed=seed, buffer_size=self.shuffle_buffer_size)
        if self.num_processes > 1:
            rows = split_dataset_by_node(rows, rank=self.process_index, world_size=self.num_processes)
        return rows


def build_dataset(
    images: Sequence[LabelledImage] | StreamedImages, transform: Transform, seed: int = 0, **stream_options
) -> ImageTable | ImageStream:
    """Examples of the images, by index where they are a table.

    Args:
        images: What `load_images` gives.
        transform: Image to pixel values.
        seed: Seed of the run.
        stream_options: As for `ImageStream`, in case they are a stream.
    """
    if isinstance(images, StreamedImages):
        return ImageStream(images, transform, seed, **stream_options)
    return ImageTable(images, transform, seed)


def collate(examples: Sequence[dict]) -> dict[str, torch.Tensor]:
    """Batch of examples: `pixel_values` (batch, channels, height, width) and `labels` (batch,)."""
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }
