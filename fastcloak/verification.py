"""Above which cosine a face network takes two photos for the same person.

The cosines are those that 1 in 1,000 pairs of different people exceed (false accept rate 1e-3), over 495,300 pairs of
LFW photos, detected and aligned by `fastcloak.faces`. Of 4,200 pairs of one person SFace accepts 96.5 % and dlib's
network, with the mean embedding that it is loaded with, 73.9 %. OpenCV's own threshold for SFace is 0.363.
Rows: bench/results/verification_lfw.csv (`python -m bench.verification`).
"""

__all__ = ["FALSE_ACCEPT_RATE", "LENIENT_THRESHOLDS", "VERIFICATION_THRESHOLDS", "verification_threshold"]

FALSE_ACCEPT_RATE = 1e-3
VERIFICATION_THRESHOLDS = {"sface": 0.375, "dlib": 0.644}
LENIENT_THRESHOLDS = {"sface": 0.303, "dlib": 0.499}
"""The same at a false accept rate of 1e-2, to compare one photo with several of a person."""


def verification_threshold(name: str) -> float | None:
    """Threshold of a network on cosines, or None where none is known.

    Args:
        name: `Surrogate.name`.
    """
    return VERIFICATION_THRESHOLDS.get(name)
