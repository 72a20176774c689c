"""CrossFormer and CrossFormer++ for Hugging Face Transformers; importing it registers the Auto classes."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
)

from .configuration_crossformer import CrossFormerConfig
from .group_schedules import group_schedule
from .image_processing_crossformer import CrossFormerImageProcessor
from .modeling_crossformer import (
    CrossFormerBackbone,
    CrossFormerForImageClassification,
    CrossFormerForSemanticSegmentation,
    CrossFormerModel,
    CrossFormerPreTrainedModel,
)
from .modeling_crossformer_detection import CrossFormerForInstanceSegmentation, CrossFormerForObjectDetection
from .presets import PRESETS, preset_config
from .pretrained_backbone import from_pretrained_backbone
from .version import __version__


AutoConfig.register(CrossFormerConfig.model_type, CrossFormerConfig, exist_ok=True)
AutoModel.register(CrossFormerConfig, CrossFormerModel, exist_ok=True)
AutoModelForImageClassification.register(CrossFormerConfig, CrossFormerForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(CrossFormerConfig, CrossFormerForSemanticSegmentation, exist_ok=True)
AutoModelForObjectDetection.register(CrossFormerConfig, CrossFormerForObjectDetection, exist_ok=True)
AutoModelForInstanceSegmentation.register(CrossFormerConfig, CrossFormerForInstanceSegmentation, exist_ok=True)
AutoBackbone.register(CrossFormerConfig, CrossFormerBackbone, exist_ok=True)
AutoImageProcessor.register(CrossFormerConfig, fast_image_processor_class=CrossFormerImageProcessor, exist_ok=True)

__all__ = [
    "__version__",
    "PRESETS",
    "CrossFormerBackbone",
    "CrossFormerConfig",
    "CrossFormerForImageClassification",
    "CrossFormerForInstanceSegmentation",
    "CrossFormerForObjectDetection",
    "CrossFormerForSemanticSegmentation",
    "CrossFormerImageProcessor",
    "CrossFormerModel",
    "CrossFormerPreTrainedModel",
    "from_pretrained_backbone",
    "group_schedule",
    "preset_config",
]
