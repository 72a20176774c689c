"""Find the objects in images: for each, a picture of it beside itself with boxes, labels, scores and masks.

    python detect_objects.py --model_name_or_path outputs/detector photo.jpg holiday_photos

Without an image it draws one with coloured shapes. Pictures that are already there are left, so a killed run goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


try:
    from support.detection_drawing import draw_detections
    from support.detection_inference import Detection, ObjectFinder
    from support.detection_models import load_detector, size_check
    from support.devices import choose_device
    from support.errors import CommandParser, InputError, run_command
    from support.image_files import open_as_rgb, open_rgb
    from support.pictures import plan
    from support.pretrained import load_image_processor
    from support.resuming import write_atomically, write_json
    from support.shapes import make_shapes_image
    from tqdm.auto import tqdm
    from transformers import logging
except ImportError as error:
    sys.exit(f"This script needs `{error.name}`, which is not installed: pip install 'crossformer-hf[train]'")


SAMPLE_SEED = 2


def build_parser() -> CommandParser:
    """Parser of the command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("images", nargs="*", type=Path, help="image files, or folders of them")
    parser.add_argument("--model_name_or_path", required=True, help="folder or Hub name of a trained detector")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/detected"), help="folder to write")
    parser.add_argument("--threshold", type=share, default=0.5, help="objects with a higher score are drawn")
    parser.add_argument(
        "--json", action="store_true", help="also write boxes (left, top, right, bottom in pixels) and masks as JSON"
    )
    parser.add_argument(
        "--convert_rgb", action="store_true", help="convert grey, palette, CMYK and transparent images"
    )
    parser.add_argument("--skip_broken", action="store_true", help="leave out unusable images, and say which")
    parser.add_argument("--overwrite", action="store_true", help="replace pictures that are already there")
    parser.add_argument("--device", help="such as cpu or cuda; the accelerator, if there is one")
    return parser


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def draw_sample(folder: Path) -> Path:
    """An image of shapes to try the model on."""
    path = folder / "sample" / "shapes.png"
    image = make_shapes_image(SAMPLE_SEED, index=0).image
    write_atomically(path, lambda file: image.save(file, format="PNG"))
    return path


def names_of(model) -> list[str]:
    """Names of a model's classes."""
    return [model.config.id2label[label] for label in range(model.config.num_labels)]


def describe(path: Path, size: tuple[int, int], detections: Sequence[Detection], names: Sequence[str]) -> dict:
    """Detections in an image of `size` (width, height) for JSON; masks are COCO's compressed run lengths."""
    objects = []
    for found in detections:
        fields = {"label": names[found.label], "score": found.score, "box": found.box}
        objects.append({**fields, **({"segmentation": found.segmentation} if found.segmentation else {})})
    return {"image": str(path), "width": size[0], "height": size[1], "objects": objects}


def detect(finder: ObjectFinder, path: Path, open_image, picture: Path, with_json: bool) -> None:
    """Find the objects of an image and write its picture, last, as it says that all is done."""
    image = open_image(str(path), path)
    size_check(finder.model, finder.processor)(str(path), (image.height, image.width))
    detections, names = finder([image])[0], names_of(finder.model)
    if with_json:
        write_json(picture.with_suffix(".json"), describe(path, image.size, detections, names))
    write_atomically(picture, lambda file: draw_detections(file, image, detections, names))


def detect_objects(arguments: argparse.Namespace) -> None:
    """Draw every image whose picture is not there yet."""
    output = arguments.output_dir
    model = load_detector(arguments.model_name_or_path).to(choose_device(arguments.device))
    finder = ObjectFinder(model, load_image_processor(arguments.model_name_or_path), arguments.threshold)
    pictures = plan(arguments.images or [draw_sample(output)], output)
    open_image = open_as_rgb if arguments.convert_rgb else open_rgb
    for path, picture in tqdm(pictures.items(), desc="Detecting"):
        is_done = picture.exists() and (not arguments.json or picture.with_suffix(".json").exists())
        if is_done and not arguments.overwrite:
            continue
        try:
            detect(finder, path, open_image, picture, arguments.json)
        except InputError as error:
            if not arguments.skip_broken:
                raise
            tqdm.write(f"skipped: {error}")
    print(f"Pictures of {len(pictures)} images are in {output}, such as {next(iter(pictures.values()))}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return run_command(parser, lambda: detect_objects(arguments))


if __name__ == "__main__":
    sys.exit(main())
