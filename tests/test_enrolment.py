import numpy as np
import pytest
import torch
from PIL import Image

from fastcloak import FaceNotFoundError, PersonNotFoundError, enrol, protect
from fastcloak.cloak import Cloak
from fastcloak.photos.files import read_photo
from fastcloak.protection.enrolment import VERIFICATION_THRESHOLDS, verification_threshold
from fastcloak.system import packages


def orl(person, photo, scale=3):
    pixels = read_photo(packages.orl_folder() / f"s{person}" / f"{photo}.pgm").pixels
    return np.array(Image.fromarray(pixels).resize((92 * scale, 112 * scale), Image.Resampling.BICUBIC))


def photos(person, numbers):
    return [packages.orl_folder() / f"s{person}" / f"{number}.pgm" for number in numbers]


@pytest.mark.parametrize("model", ["sface", "dlib"])
def test_a_person_is_told_from_others(model):
    enrolment = enrol(photos(3, range(1, 6)), model)
    assert enrolment.threshold == VERIFICATION_THRESHOLDS[model]
    assert enrolment.find(orl(3, 7)).box[2] > 50
    with pytest.raises(PersonNotFoundError, match=r"photo must show the enrolled person, got 1 face, the most similar"):
        enrolment.find(orl(5, 7))
    with pytest.raises(FaceNotFoundError, match="got no face at all"):
        enrolment.find(np.zeros((200, 200, 3), np.uint8))


def test_similarities_are_cosines_to_the_mean_direction(tiny_net, faces):
    enrolment = enrol(faces[:3], tiny_net, threshold=0.5)
    with torch.no_grad():
        features = tiny_net(faces) / tiny_net(faces).norm(dim=1, keepdim=True)
    center = features[:3].mean(0) / features[:3].mean(0).norm()
    assert torch.allclose(enrolment.similarities(faces), features @ center, atol=1e-6)


def test_an_aligned_face_of_another_is_refused():
    eps = 8 / 255
    cloak = Cloak(torch.full((3, 112, 112), eps * 0.99), eps)
    mine, other = (np.array(Image.fromarray(orl(person, 7)).resize((112, 112))) for person in (3, 5))
    enrolment = enrol([mine], threshold=0.9)
    assert (protect(mine, cloak, who="me", enrolment=enrolment) != mine).any()
    with pytest.raises(PersonNotFoundError):
        protect(other, cloak, who="me", enrolment=enrolment)


def test_enrol_and_who_refuse_with_words(tiny_net, faces):
    with pytest.raises(ValueError, match=r"threshold must be given for the network .*got none"):
        enrol(faces, tiny_net)
    with pytest.raises(ValueError, match=r"threshold must be a cosine in \[-1, 1\], got 2"):
        enrol(faces, tiny_net, threshold=2)
    assert verification_threshold("unknown") is None
    cloak, pixels = Cloak(torch.zeros(3, 112, 112), 0.0), np.zeros((112, 112, 3), np.uint8)
    with pytest.raises(ValueError, match=r"enrolment must be given with who='me' and only then, got who='me' without"):
        protect(pixels, cloak, who="me")
    with pytest.raises(ValueError, match=r"got who='all' with one"):
        protect(pixels, cloak, who="all", enrolment=enrol(faces, tiny_net, threshold=0))
