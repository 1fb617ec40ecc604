"""What someone finds who compares by a threshold, worked out by hand from angles and counted by plain loops."""

import math
from statistics import mean

import pytest
import torch
from torch.nn.functional import normalize

from fastcloak.evaluation.adversary import find_threshold, templates, threshold_rates
from fastcloak.evaluation.protocol import person_rates, rank_rates
from fastcloak.evaluation.results import LEAST_PAIRS, ThresholdRates
from fastcloak.protection.enrolment import VERIFICATION_THRESHOLDS

# Photos up to 31 degrees apart are accepted.
THRESHOLD = math.cos(math.radians(31))


def at(*degrees):
    """Unit features [N, 2] at these angles."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack((angles.cos(), angles.sin()), dim=1).float()


CLEAN, POSTED, STRANGERS = at(0, 90, 180), at(100, 25, 50), at(110, 300)


def test_every_rate_is_what_is_worked_out_by_hand():
    rates = threshold_rates(POSTED, CLEAN, STRANGERS, THRESHOLD)
    # 100 is near 90, and 25 near 0. The other four pairs are 40 degrees apart or more.
    assert rates.accepted == pytest.approx(2 / 6)
    # 25 and 50, and the other way round.
    assert rates.linked == pytest.approx(2 / 6)
    # From 0: 25, and by it 50. From 90: 100, and nothing more. From 180: nothing.
    assert rates.tracked == pytest.approx((2 / 2 + 1 / 2 + 0 / 2) / 3)
    # 100 is 35 degrees from the mean of 90 and 180, the mean of 0 and 180 is nowhere, 50 is 5 from that of 0 and 90.
    assert rates.template == pytest.approx(1 / 3)
    # 100 is taken for 110.
    assert rates.impersonation == pytest.approx(1 / 6)


def test_a_growing_gallery_goes_from_photo_to_photo_but_never_by_the_photo_that_it_starts_with():
    chain = at(*range(20, 200, 30))
    clean = at(0, *[270] * 5)
    # Only the first step is short, and the photo that the first original became is not in the album.
    assert threshold_rates(chain, clean, None, THRESHOLD).tracked == 0
    # The same photos in another order: from 0 each of the five others is found by the one before it.
    posted = chain[[5, 0, 1, 2, 3, 4]]
    rates = threshold_rates(posted, clean, None, THRESHOLD)
    assert rates.tracked == pytest.approx((5 / 5 + 0 * 5) / 6)
    # A link is missing: two are found.
    posted[3] = at(240)[0]
    assert threshold_rates(posted, clean, None, THRESHOLD).tracked == pytest.approx((2 / 5 + 1 / 5 * 4) / 6)


def test_masks_that_lead_to_a_stranger_are_seen():
    clean, posted, strangers = at(0, 10), at(300, 305), at(300, 90)
    rates = [threshold_rates(photos, clean, strangers, THRESHOLD) for photos in (clean, posted)]
    assert [rate.impersonation for rate in rates] == [0, 0.5]
    assert [rate.accepted for rate in rates] == [1, 0]


def test_a_template_is_the_mean_of_the_first_ten_other_clean_photos():
    clean = at(*[0] * 10, 90, 90)
    other = ~torch.eye(12, dtype=torch.bool)
    expected = normalize(torch.tensor([[9.0, 1.0], [10.0, 0.0]]), dim=1)
    torch.testing.assert_close(templates(clean, other)[[0, 11]], expected)


def test_what_has_no_pairs_and_no_threshold_has_no_rates():
    assert threshold_rates(POSTED, CLEAN, STRANGERS, None) == ThresholdRates(None, None, None, None, None)
    assert threshold_rates(POSTED, CLEAN, None, THRESHOLD).impersonation is None
    one = threshold_rates(at(0), at(0), STRANGERS, THRESHOLD)
    assert one == ThresholdRates(impersonation=0)
    nothing = threshold_rates(at(), CLEAN, STRANGERS, THRESHOLD, own=torch.tensor([], dtype=torch.int64))
    assert nothing == ThresholdRates()


def test_photos_in_which_no_face_is_found_are_no_part_of_the_album():
    rates = threshold_rates(POSTED[1:], CLEAN, STRANGERS, THRESHOLD, own=torch.tensor([1, 2]))
    # From 0 both are found; from 90 not 50, nor from 180 25.
    assert rates == ThresholdRates(
        accepted=pytest.approx(1 / 4),
        linked=1.0,
        tracked=pytest.approx(1 / 3),
        template=pytest.approx(1 / 2),
        impersonation=0.0,
    )


@pytest.mark.parametrize("seed", range(5))
def test_rates_equal_plain_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    clean, posted, crowd = (normalize(torch.randn(n, 3, generator=generator), dim=1) for n in (13, 13, 7))
    people = range(13)

    def near(a, b):
        return float(a @ b) >= 0.7

    found = []
    for start in people:
        gallery, left = [clean[start]], [posted[i] for i in people if i != start]
        while taken := [photo for photo in left if any(near(photo, one) for one in gallery)]:
            gallery += taken
            left = [photo for photo in left if not any(photo is one for one in taken)]
        found.append((len(gallery) - 1) / 12)
    pairs = [(i, j) for i in people for j in people if i != j]
    means = [torch.stack([clean[j] for j in people if j != i][:10]).mean(0) for i in people]
    assert threshold_rates(posted, clean, crowd, 0.7) == ThresholdRates(
        accepted=pytest.approx(mean(near(posted[i], clean[j]) for i, j in pairs)),
        linked=pytest.approx(mean(near(posted[i], posted[j]) for i, j in pairs)),
        tracked=pytest.approx(mean(found)),
        template=pytest.approx(mean(near(posted[i], means[i] / means[i].norm()) for i in people)),
        impersonation=pytest.approx(mean(near(posted[i], stranger) for i in people for stranger in crowd)),
    )


def test_a_threshold_is_the_known_one_or_estimated_from_enough_strangers():
    cosines = torch.linspace(-1, 1, LEAST_PAIRS)
    assert (
        find_threshold("dlib", cosines).value == find_threshold("dlib", None).value == VERIFICATION_THRESHOLDS["dlib"]
    )
    assert "LFW" in find_threshold("dlib", None).origin
    estimated = find_threshold("other", cosines.view(3, -1))
    assert int((cosines >= estimated.value).sum()) == 3
    assert f"3 of {LEAST_PAIRS} pairs" in estimated.origin
    assert find_threshold("other", cosines[1:]) is None
    assert find_threshold("other", None) is None


def test_protected_photos_of_others_join_the_distractors_of_the_mixed_rates():
    # All masks lead to about 200 degrees, and the clean crowd is far from there.
    clean, posted, crowd, protected = at(0, 20), at(200, 210), at(300, 310), at(201, 225)
    rates = rank_rates(posted, clean, crowd, protected)
    assert (rates.protection_top1, rates.linkage_top1) == (1, 1)
    # 200 -> 210 is beaten by 201 now, and so is 210 -> 200.
    assert (rates.mixed_top1, rates.mixed_linkage) == (1, 0)
    # 100 -> 20 is beaten by 170 only, and 60 -> 0 by nobody.
    rates = rank_rates(at(100, 60), clean, at(200), at(170))
    assert (rates.protection_top1, rates.mixed_top1) == (0, 0.5)
    assert (rates.linkage_top1, rates.mixed_linkage) == (1, 1)


def test_person_rates_are_those_of_ranks_and_of_the_threshold():
    rates = person_rates(POSTED, CLEAN, STRANGERS, threshold=THRESHOLD, protected=at(200))
    ranked, reached = (
        rank_rates(POSTED, CLEAN, STRANGERS, at(200)),
        threshold_rates(POSTED, CLEAN, STRANGERS, THRESHOLD),
    )
    assert vars(rates) == {**vars(ranked), **vars(reached)}
    bare = person_rates(POSTED, CLEAN, STRANGERS)
    assert (bare.accepted, bare.impersonation, bare.mixed_top1, bare.mixed_linkage) == (None,) * 4
