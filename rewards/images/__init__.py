"""Rewards of images, and metrics of sets of images. Heavy packages are imported on first use."""

from .adapters import HPS, ImageReward, PickScore, Statistics
from .basic import (
    Brightness,
    Color,
    Contrast,
    ImageScore,
    JPEGSize,
    Saturation,
    Sharpness,
    TotalVariation,
    image_batch,
    pil_images,
)
from .classifier import Classifier
from .clip import Aesthetic, Clip, ClipScore
from .frames import Frames
from .metrics import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    feature_distance,
    features,
    frechet_distance,
    precision_recall,
    vendi_score,
)

__all__ = [
    "HPS",
    "Aesthetic",
    "Brightness",
    "Classifier",
    "Clip",
    "ClipScore",
    "Color",
    "Contrast",
    "DensityCoverage",
    "Frames",
    "ImageReward",
    "ImageScore",
    "JPEGSize",
    "PickScore",
    "PrecisionRecall",
    "Saturation",
    "Sharpness",
    "Statistics",
    "TotalVariation",
    "density_coverage",
    "feature_distance",
    "features",
    "frechet_distance",
    "image_batch",
    "pil_images",
    "precision_recall",
    "vendi_score",
]
