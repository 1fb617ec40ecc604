"""Masks for the faces of an album: not like the person, not like each other, within their bounds."""

import pytest
import torch
from torch.nn import functional as F

import fastcloak
from fastcloak.fitting.objective import Apart
from fastcloak.ops import reference
from fastcloak.photos.alignment import ALIGNED_FACE
from fastcloak.protection.enrolment import Enrolment
from fastcloak.tailoring.canvas import canvas_of
from fastcloak.tailoring.tailor import Tailor
from tests.conftest import TinyNet, smooth_faces
from tests.cuda_graphs import fake_cuda

FAST = {"device": "cpu", "dtype": "float32", "backend": "reference", "engine": "eager"}


def network(seed=0):
    net = TinyNet()
    if seed:
        net.body[-1].weight.data = net.body[-1].weight.data.roll(seed, 0)
    surrogate = fastcloak.load_model(net, device="cpu")
    surrogate.name = f"net{seed}"
    return surrogate


def person(faces):
    features = F.normalize(network()(faces), dim=1)
    return Enrolment(network(), F.normalize(features.mean(0), dim=0), 0.5, faces)


FACES = smooth_faces(6)
ME = person(FACES[:3])


def tailored(faces=FACES, me=ME, models=None, **options):
    return fastcloak.tailor(faces, me, [network()] if models is None else models, **{**FAST, **options})


def unit(faces):
    with torch.no_grad():
        return F.normalize(network()(faces.clamp(0, 1)), dim=1)


STRONG = {"look": "even", "eps": 24 / 255, "gradients": 24}


def likeness(faces):
    """Mean cosine of the faces to the person, and to each other."""
    features = unit(faces)
    others = ~torch.eye(len(faces), dtype=torch.bool)
    return (features @ ME.center).mean().item(), (features @ features.T)[others].mean().item()


def test_faces_are_driven_away_from_the_person():
    masks = tailored(**STRONG, apart=0)
    assert (masks.shape, masks.dtype) == (FACES.shape, torch.float32)
    before, after = likeness(FACES)[0], likeness(FACES + masks)[0]
    assert after < before - 0.3
    assert len({tuple(mask.flatten()[:200].tolist()) for mask in masks}) == len(FACES)  # each has its own


def test_faces_are_driven_apart():
    alone, together = (likeness(FACES + tailored(me=None, **STRONG, apart=apart))[1] for apart in (0, 1))
    assert together < alone - 0.05


def test_without_photos_of_the_person_it_protects_too_and_says_so(caplog):
    before, after = (likeness(faces)[0] for faces in (FACES, FACES + tailored(me=None, **STRONG, apart=0)))
    assert after < before - 0.1
    assert "without photos of the person" in caplog.text


def test_faces_are_kept_apart_from_earlier_ones():
    old, new = FACES[:3], FACES[3:]
    old = old + tailored(old, **STRONG)
    cosines = []
    for known in (False, True):
        worker = Tailor(None, [network()], **STRONG, apart=1, **FAST)
        if known:
            worker.remember(old.clamp(0, 1))
        worker.faces_per_pass = 1
        masks = []
        for face in new:
            pixels = (255 * face).permute(1, 2, 0).numpy()
            ((mask, bound),) = worker.masks([canvas_of(pixels, ALIGNED_FACE)])
            masks.append(torch.from_numpy(mask * bound)[:112, :112].permute(2, 0, 1))
        cosines.append((unit(new + torch.stack(masks)) @ unit(old).T).mean().item())
    assert cosines[1] < cosines[0] - 0.05


def test_the_others_that_look_most_alike_count_most():
    together = torch.ones(3, 3).fill_diagonal_(0)
    center = torch.tensor([[0.1, -0.2], [0.0, 0.0], [0.3, 0.4]])
    apart, units = Apart(reference, 2, 0.5, together), torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    apart.begin(torch.empty(0, 2))
    weights = torch.softmax(torch.tensor([0.6, 0.0]) / 0.1, 0)
    expected = 0.5 * (weights[0] * units[1] + weights[1] * units[2])
    torch.testing.assert_close(apart.center(3 * units, center)[0], center[0] + expected)
    together[0, 1] = 0
    torch.testing.assert_close(apart.center(units, center)[0], center[0] + 0.5 * units[2])
    together.zero_()
    assert torch.equal(apart.center(units, center), center)
    apart.begin(torch.tensor([[-1.0, 0.0]]))
    torch.testing.assert_close(apart.center(units, center), center + torch.tensor([-0.5, 0.0]))


@pytest.mark.promise("P1")
@pytest.mark.parametrize("look", ["even", "textured"])
def test_masks_stay_within_their_bounds(look):
    worker = Tailor(ME, [network()], look=look, gradients=4, **FAST)
    canvases = [canvas_of((255 * face).permute(1, 2, 0).numpy(), ALIGNED_FACE) for face in FACES]
    for (mask, bound), change in zip(worker.masks(canvases), tailored(look=look, gradients=4), strict=True):
        assert set(mask.flatten().tolist()) <= {-1.0, 0.0, 1.0}
        assert bound.max() <= torch.tensor(worker.config.largest)
        assert change.abs().max() <= bound.max()


@pytest.mark.promise("P4")
@pytest.mark.parametrize("options", [{"gradients": 0}, {"eps": 0.0}])
def test_nothing_to_do_changes_nothing(options):
    assert not tailored(**options).any()


@pytest.mark.promise("P6")
def test_the_same_call_gives_the_same_bits_and_another_seed_others():
    models = [network(), network(3)]
    first = tailored(models=models, gradients=6)
    assert torch.equal(first, tailored(models=models, gradients=6))
    assert not torch.equal(first, tailored(models=models, gradients=6, seed=1))


@pytest.mark.promise("P5")
def test_inputs_and_random_numbers_are_as_before():
    faces, model = FACES.clone(), network()
    before = [(weight.clone(), weight.requires_grad) for weight in model.parameters()]
    state = torch.get_rng_state()
    tailored(faces, models=[model], gradients=3)
    assert torch.equal(faces, FACES)
    assert torch.equal(torch.get_rng_state(), state)
    for weight, (values, requires_grad) in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight, values)
        assert weight.requires_grad == requires_grad


@pytest.mark.promise("P14")
def test_a_graph_gives_the_masks_of_eager_bit_for_bit(monkeypatch):
    cuda = fake_cuda(monkeypatch)
    models = [network(), network(3)]
    expected = tailored(models=models, gradients=8)
    assert torch.equal(tailored(models=models, gradients=8, engine="cudagraph"), expected)
    assert cuda.named("replay")


@pytest.mark.promise("P14")
@pytest.mark.usefixtures("large_programs")
def test_kernels_give_nearly_the_masks_of_the_reference():
    pytest.importorskip("triton")
    reference, kernels = (tailored(FACES[:2], gradients=2, backend=backend) for backend in ("reference", "triton"))
    assert (reference != kernels).float().mean() < 0.02


def test_grey_photos_get_grey_masks_and_others_not():
    grey = FACES.clone()
    grey[::2] = grey[::2, :1]
    masks = tailored(grey, gradients=3)
    assert torch.equal(masks[::2], masks[::2, :1].expand_as(masks[::2]))
    assert not torch.equal(masks[1::2], masks[1::2, :1].expand_as(masks[1::2]))


def test_of_several_people_only_those_that_look_alike_are_kept_apart():
    sface = network()
    sface.name = "sface"  # of which it is known what looks alike
    stranger = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    assert unit(FACES[:1]) @ unit(stranger).T < 0.3

    def masks(faces, of_several):
        worker = Tailor(None, [sface], gradients=6, apart=10, **FAST)
        canvases = [canvas_of((255 * face).permute(1, 2, 0).numpy(), ALIGNED_FACE) for face in faces]
        return torch.from_numpy(worker.masks(canvases, of_several=of_several)[0][0])

    alone = masks(stranger, False)
    pair = torch.cat((stranger, FACES[:1]))
    assert (masks(pair, True) != alone).float().mean() < 0.03 < (masks(pair, False) != alone).float().mean()

    def after(earlier, originals):
        worker = Tailor(None, [sface], gradients=6, apart=10, **FAST)
        worker.remember(earlier, originals)
        canvas = canvas_of((255 * stranger[0]).permute(1, 2, 0).numpy(), ALIGNED_FACE)
        return torch.from_numpy(worker.masks([canvas], of_several=True)[0][0])

    assert torch.equal(after(stranger, FACES[:1]), alone)
    for originals in (None, stranger):
        assert (after(FACES[:1], originals) != alone).float().mean() > 0.03


@pytest.mark.promise("P8")
def test_a_gradient_that_is_not_finite_is_named():
    class Broken(TinyNet):
        def forward(self, x):
            return super().forward(x) + 0 * (0 * x[:, :, 0, :16]).sqrt().sum(1)  # fine but for its slope

    with pytest.raises(FloatingPointError, match="gradients became NaN or Inf at step 2 of 3"):
        tailored(models=[Broken()], gradients=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"look": "shiny"}, ValueError, "look must be one of even, textured, got 'shiny'"),
        ({"strength": "huge"}, ValueError, "strength must be one of light, medium, strong"),
        ({"gradients": -1}, ValueError, "gradients must be"),
        ({"apart": -0.1}, ValueError, "apart must be"),
        ({"eps": 2}, ValueError, "eps must be"),
        ({"steps": 3}, TypeError, "unknown option steps; expected strength, look"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        tailored(**options)


def test_an_idle_option_is_warned_of(caplog):
    tailored(FACES[:1], gradients=0)
    assert "with gradients = 0 a mask protects nothing" in caplog.text
