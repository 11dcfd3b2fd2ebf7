"""The guidance terms that ship with rarefy, one per file."""

from rarefy.guidance.terms.boost_and_skip import BoostAndSkip
from rarefy.guidance.terms.classifier import ClassifierGuidance
from rarefy.guidance.terms.entropy_ascent import EntropyAscent
from rarefy.guidance.terms.low_confidence import LowConfidence
from rarefy.guidance.terms.predicted_real_image import PredictedRealImage
from rarefy.guidance.terms.self_guided import SelfGuided

__all__ = [
    "BoostAndSkip",
    "ClassifierGuidance",
    "EntropyAscent",
    "LowConfidence",
    "PredictedRealImage",
    "SelfGuided",
]
