"""The enrolled person is found among others."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastcloak import FaceNotFoundError, PersonNotFoundError, enrol, protect
from fastcloak.protection.enrolment import VERIFICATION_THRESHOLDS, verification_threshold
from tests.pictures import make_cloak, orl_file, orl_pixels


@pytest.mark.parametrize("model", ["sface", "dlib"])
def test_a_person_is_told_from_others(model):
    enrolment = enrol([orl_file(3, number) for number in range(1, 6)], model)
    assert enrolment.threshold == VERIFICATION_THRESHOLDS[model]
    assert enrolment.find(orl_pixels(3, 7, scale=3)).box[2] > 50
    with pytest.raises(PersonNotFoundError, match=r"photo must show the enrolled person, got 1 face, the most similar"):
        enrolment.find(orl_pixels(5, 7, scale=3))
    with pytest.raises(FaceNotFoundError, match="got no face at all"):
        enrolment.find(np.zeros((200, 200, 3), np.uint8))


def test_similarities_are_cosines_to_the_mean_direction(tiny_net, faces):
    enrolment = enrol(faces[:3], tiny_net, threshold=0.5)
    with torch.no_grad():
        features = tiny_net(faces) / tiny_net(faces).norm(dim=1, keepdim=True)
    center = features[:3].mean(0) / features[:3].mean(0).norm()
    assert torch.allclose(enrolment.similarities(faces), features @ center, atol=1e-6)


def test_an_aligned_face_of_another_is_refused():
    mine, other = (np.array(Image.fromarray(orl_pixels(person, 7)).resize((112, 112))) for person in (3, 5))
    enrolment = enrol([mine], threshold=0.9)
    assert (protect(mine, make_cloak(), who=enrolment) != mine).any()
    with pytest.raises(PersonNotFoundError):
        protect(other, make_cloak(), who=enrolment)


def test_enrol_refuses_a_threshold_that_is_unknown_or_no_cosine(tiny_net, faces):
    with pytest.raises(ValueError, match=r"threshold must be given for the network .*got none"):
        enrol(faces, tiny_net)
    with pytest.raises(ValueError, match=r"threshold must be a cosine in \[-1, 1\], got 2"):
        enrol(faces, tiny_net, threshold=2)
    assert verification_threshold("unknown") is None
