"""Above which cosine a face network takes two photos for the same person.

The cosines are those that 1 in 1,000 pairs of different people exceed (false accept rate 1e-3), over 495,300 pairs of
LFW photos, detected and aligned by `fastcloak.faces`. Of 4,200 pairs of one person SFace accepts 96.5 % and dlib's
network, with the mean embedding that it is loaded with, 73.9 %. OpenCV's own threshold for SFace is 0.363.
Rows: bench/results/verification_lfw.csv (`python -m bench.verification`).

`SAME_PERSON` is what fewer than 1 in 80,000 of those pairs reach, but for one photo that shows another person than it
says: Recep_Tayyip_Erdogan_0004. With five photos of a person to compare with, SFace finds 98 % of the person's other
photos so and dlib's network 58 %; of 39,361 pairs of a person and a stranger's photo the two take 3 together.
"""

__all__ = [
    "FALSE_ACCEPT_RATE",
    "LENIENT_THRESHOLDS",
    "SAME_PERSON",
    "VERIFICATION_THRESHOLDS",
    "verification_threshold",
]

FALSE_ACCEPT_RATE = 1e-3
VERIFICATION_THRESHOLDS = {"sface": 0.375, "dlib": 0.644}
LENIENT_THRESHOLDS = {"sface": 0.303, "dlib": 0.499}
"""The same at a false accept rate of 1e-2, to compare one photo with several of a person."""
SAME_PERSON = {"sface": 0.52, "dlib": 0.78}


def verification_threshold(name: str) -> float | None:
    """Threshold of a network on cosines, or None where none is known.

    Args:
        name: `Surrogate.name`.
    """
    return VERIFICATION_THRESHOLDS.get(name)
