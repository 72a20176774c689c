"""Segment images: for each, a picture of it beside its classes in colours, with a legend of what was found.

    python segment_image.py --model_name_or_path outputs/shapes photo.jpg holiday_photos

Without an image it draws one with coloured shapes. Pictures that are already there are left, so a killed run goes on.
"""

import argparse
import sys
from pathlib import Path


try:
    import numpy as np
    from PIL import Image
    from support.devices import choose_device
    from support.drawing import draw_segmentation
    from support.errors import CommandParser, InputError, run_command, say
    from support.image_files import open_as_rgb, open_rgb
    from support.pictures import plan
    from support.pretrained import load_image_processor
    from support.resuming import write_atomically
    from support.segmentation_inference import WholeImageSegmentation
    from support.segmentation_models import load_segmentor
    from support.shapes import make_shapes_image
    from tqdm.auto import tqdm
    from transformers import logging
except ImportError as error:
    sys.exit(f"This script needs `{error.name}`, which is not installed: pip install 'crossformer-hf[train]'")


SAMPLE_SEED = 2
MASKS = "masks"


def build_parser() -> CommandParser:
    """Parser of the command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("images", nargs="*", type=Path, help="image files, or folders of them")
    parser.add_argument("--model_name_or_path", required=True, help="folder or Hub name of a trained segmentor")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/segmented"), help="folder to write")
    parser.add_argument("--mask", action="store_true", help="also write the class of each pixel, as grey PNG files")
    parser.add_argument(
        "--convert_rgb", action="store_true", help="convert grey, palette, CMYK and transparent images"
    )
    parser.add_argument("--skip_broken", action="store_true", help="leave out unusable images, and say which")
    parser.add_argument("--overwrite", action="store_true", help="replace pictures that are already there")
    parser.add_argument("--device", help="such as cpu or cuda; the accelerator, if there is one")
    return parser


def draw_sample(folder: Path) -> Path:
    """An image of shapes to try the model on."""
    path = folder / "sample" / "shapes.png"
    image = make_shapes_image(SAMPLE_SEED, index=0).image
    write_atomically(path, lambda file: image.save(file, format="PNG"))
    return path


def mask_image(labels: np.ndarray) -> Image.Image:
    """Class of each pixel (height, width) as a grey image of 8 bits, or 16 where there are so many classes."""
    return Image.fromarray(labels.astype(np.uint8 if labels.max() < 256 else np.uint16))


def draw(segment: WholeImageSegmentation, image: Image.Image, picture: Path, mask: Path | None) -> None:
    """Segment an image and write its picture, after the mask if that is wanted: the picture says that all is done."""
    labels = segment(image)
    config = segment.model.config
    names = [config.id2label[index] for index in range(config.num_labels)]
    if mask:
        write_atomically(mask, lambda file: mask_image(labels).save(file, format="PNG"))
    write_atomically(picture, lambda file: draw_segmentation(file, image, labels, names))


def segment_images(arguments: argparse.Namespace) -> None:
    """Draw every image whose picture is not there yet."""
    output = arguments.output_dir
    model = load_segmentor(arguments.model_name_or_path).to(choose_device(arguments.device))
    segment = WholeImageSegmentation(model, load_image_processor(arguments.model_name_or_path))
    pictures = plan(arguments.images or [draw_sample(output)], output)
    open_image = open_as_rgb if arguments.convert_rgb else open_rgb
    for path, picture in tqdm(pictures.items(), desc="Segmenting"):
        mask = output / MASKS / picture.relative_to(output) if arguments.mask else None
        if not arguments.overwrite and picture.exists() and (mask is None or mask.exists()):
            continue
        try:
            draw(segment, open_image(str(path), path), picture, mask)
        except InputError as error:
            if not arguments.skip_broken:
                raise
            say(f"skipped: {error}")
    print(f"Pictures of {len(pictures)} images are in {output}, such as {next(iter(pictures.values()))}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return run_command(parser, lambda: segment_images(arguments))


if __name__ == "__main__":
    sys.exit(main())
