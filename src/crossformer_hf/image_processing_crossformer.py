"""Image processor of the instance segmenter: Deformable DETR's, and masks out of boxes."""

import torch
from transformers import DeformableDetrImageProcessor
from transformers.utils import TensorType

from .boxes_crossformer import paste_masks


class CrossFormerImageProcessor(DeformableDetrImageProcessor):
    """Resizes, normalises and pads images and COCO annotations as for Deformable DETR; reads masks off the outputs.

    `post_process_object_detection` is that of Deformable DETR, and gives the boxes of both detectors.
    """

    def resize_annotation(self, annotation: dict, orig_size, target_size, *args, **kwargs) -> dict:
        """As of Deformable DETR, which cannot resize masks where there is no object."""
        if "masks" not in annotation or len(annotation["masks"]):
            return super().resize_annotation(annotation, orig_size, target_size, *args, **kwargs)
        without = {name: value for name, value in annotation.items() if name != "masks"}
        resized = super().resize_annotation(without, orig_size, target_size, *args, **kwargs)
        return {**resized, "masks": annotation["masks"].new_zeros(0, *target_size)}

    def post_process_instance_segmentation(
        self,
        outputs,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.0,
        target_sizes: TensorType | list[tuple[int, int]] | None = None,
        return_binary_maps: bool = False,
    ) -> list[dict]:
        """Masks of the original images' sizes.

        Args:
            outputs: What `CrossFormerForInstanceSegmentation` returned.
            threshold: Detections with a higher score are kept.
            mask_threshold: Pixels with at least this probability belong to the object.
            overlap_mask_area_threshold: Without binary maps, an object goes of which better ones leave less than this
                part visible.
            target_sizes: Height and width of each original image.
            return_binary_maps: Whether to give each object a map of its own, in which objects may overlap.

        Returns:
            For each image a dictionary of `segmentation` and `segments_info`. `segmentation` (height, width) holds the
            `id` of the best object at each pixel, or -1; as binary maps, it is (objects, height, width).
            `segments_info` lists `id`, `label_id`, `score` and `box` (x1, y1, x2, y2), in pixels, best first.

        Raises:
            ValueError: There is no size for each image.
        """
        if target_sizes is None or len(target_sizes) != len(outputs.logits):
            raise ValueError(
                f"`target_sizes` is {target_sizes}, but must be (height, width) of each of the {len(outputs.logits)} "
                "images; give [image.size[::-1] for image in images]."
            )
        images = (
            self._segments(outputs, index, tuple(map(int, size)), threshold, mask_threshold)
            for index, size in enumerate(target_sizes)
        )
        if return_binary_maps:
            return list(images)
        return [flatten_segments(segments, overlap_mask_area_threshold) for segments in images]

    def _segments(self, outputs, index: int, size: tuple[int, int], threshold: float, mask_threshold: float) -> dict:
        """The segments of one image, as binary maps."""
        scores, labels = outputs.logits[index].sigmoid().max(dim=1)
        kept = (scores > threshold).nonzero().squeeze(1)
        height, width = size
        boxes = outputs.pred_boxes[index, kept]
        centres, sides = boxes.split(2, dim=1)
        boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
        boxes = boxes * boxes.new_tensor([width, height, width, height])
        # One after the other: each map has as many pixels as the image.
        maps = [
            paste_masks(mask[None], box[None], size)[0] >= mask_threshold
            for mask, box in zip(outputs.pred_masks[index, kept].sigmoid(), boxes, strict=True)
        ]
        return {
            "segmentation": torch.stack(maps) if maps else boxes.new_zeros(0, *size, dtype=torch.bool),
            "segments_info": [
                {"id": place, "label_id": int(labels[row]), "score": float(scores[row]), "box": boxes[place].tolist()}
                for place, row in enumerate(kept.tolist())
            ],
        }


def flatten_segments(segments: dict, least_visible: float) -> dict:
    """Binary maps, best first, to one map in which better ones cover the others."""
    maps = segments["segmentation"]
    flat = torch.full(maps.shape[1:], -1, dtype=torch.int64, device=maps.device)
    kept = []
    for segment, binary in zip(segments["segments_info"], maps, strict=True):
        visible = binary & (flat < 0)
        if visible.any() and visible.sum() >= least_visible * binary.sum():
            flat[visible] = segment["id"]
            kept.append(segment)
    return {"segmentation": flat, "segments_info": kept}


__all__ = ["CrossFormerImageProcessor"]
