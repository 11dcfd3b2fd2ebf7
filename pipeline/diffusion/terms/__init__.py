"""The guidance terms that ship with rarefy, one a file."""

from pipeline.diffusion.terms.boost_and_skip import BoostAndSkip
from pipeline.diffusion.terms.classifier import ClassifierGuidance
from pipeline.diffusion.terms.entropy_ascent import EntropyAscent
from pipeline.diffusion.terms.low_confidence import LowConfidence
from pipeline.diffusion.terms.predicted_real_image import PredictedRealImage
from pipeline.diffusion.terms.self_guided import SelfGuided

__all__ = [
    "BoostAndSkip",
    "ClassifierGuidance",
    "EntropyAscent",
    "LowConfidence",
    "PredictedRealImage",
    "SelfGuided",
]
