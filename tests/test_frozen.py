"""What frozen weights allow on a GPU: nothing is kept or computed that only a gradient of weights would read."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from bench.harness import nets
from fastcloak.fitting.groups import persons_per_pass
from fastcloak.fitting.options import FitConfig
from fastcloak.models import load_model, prepare, with_dropout
from fastcloak.models.rewrites.centre import centre
from fastcloak.models.rewrites.conv import FrozenConv2d, freeze_convolutions
from fastcloak.models.rewrites.prelu import FrozenPReLU
from fastcloak.models.surrogate import Surrogate
from fastcloak.ops import reference
from fastcloak.ops.backend import resolve_backend
from tests.conftest import TinyNet
from tests.test_prepare import FLATTENS, SmallResNet, difference, faces, seeded

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAYOUTS = {False: torch.contiguous_format, True: torch.channels_last}


def resnet():
    return load_model(seeded(SmallResNet(FLATTENS["flatten"])), scale=2.0, shift=-1.0)


def for_gpu(surrogate, **options):
    return prepare(surrogate, device=DEVICE, backend="triton", **options)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- convolutions

CONVOLUTIONS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (5, 4), "stride": (2, 3), "padding": (2, 1), "bias": False},
    "grouped": {"kernel_size": 3, "groups": 2, "dilation": 2},
    "depthwise": {"kernel_size": 3, "groups": 6, "padding": 1},
    "pointwise": {"kernel_size": 1},
}


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_frozen_convolution_has_the_same_numbers_and_keeps_its_weights_alone(name, dtype, channels_last):
    net = nn.Sequential(nn.Conv2d(6, 12, **CONVOLUTIONS[name])).to(DEVICE, dtype).requires_grad_(False)
    net.to(memory_format=LAYOUTS[channels_last])
    frozen = copy.deepcopy(net)
    freeze_convolutions(frozen)
    assert type(frozen[0]) is FrozenConv2d
    x = random(3, 6, 13, 11).to(DEVICE, dtype).to(memory_format=LAYOUTS[channels_last]).requires_grad_()
    results, kept = [], []
    for module in (net, frozen):
        with saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor):
            y = module(x)
        results.append((y.detach(), *torch.autograd.grad(y, x, random(*y.shape, seed=1).to(y))))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][1].stride() == results[1][1].stride()
    assert kept == [x.shape, net[0].weight.shape, net[0].weight.shape]


def test_grouped_convolutions_with_a_stride_have_their_gradient_in_float32_on_a_cpu():
    net = nn.Sequential(nn.Conv2d(6, 6, 3, 2, 1, groups=6), nn.Conv2d(6, 6, 3, 1, 1, groups=6), nn.Conv2d(6, 6, 3, 2))
    prepared = net.to(torch.bfloat16).requires_grad_(False)
    freeze_convolutions(prepared, slow_alone=True)
    slow = prepared[0]
    assert [type(module) is FrozenConv2d for module in prepared] == [True, False, False]
    x, upstream = random(2, 6, 9, 9).bfloat16().requires_grad_(), random(2, 6, 5, 5, seed=1).bfloat16()
    (grad,) = torch.autograd.grad(slow(x), x, upstream)
    leaf = x.detach().double().requires_grad_()
    y = F.conv2d(leaf, slow.weight.double(), stride=2, padding=1, groups=6)
    (exact,) = torch.autograd.grad(y, leaf, upstream.double())
    assert grad.dtype == torch.bfloat16
    assert torch.allclose(grad.double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_in_bfloat16_on_a_cpu_has_its_slow_convolutions_replaced(dtype):
    net = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 4, 3, 2, 1, groups=4), nn.Flatten(), nn.Linear(196, 6))
    prepared = prepare(load_model(seeded(net)), device="cpu", dtype=dtype)
    frozen = [module for module in prepared.modules() if type(module) is FrozenConv2d]
    assert [module.groups for module in frozen] == ([4] if dtype == torch.bfloat16 else [])


def test_convolutions_that_are_watched_or_pad_otherwise_stay():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    )
    net[0].register_forward_hook(lambda *_: None)
    freeze_convolutions(net)
    assert [type(module) for module in net] == [nn.Conv2d] * 3


# ---- PReLU


@pytest.mark.promise("P14")
@pytest.mark.parametrize("bias", [None, "channel", "picture"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "channels_last"), [((2, 3, 5, 7), False), ((3, 64, 9, 3), True), ((2, 13), False)])
def test_prelu_and_its_gradient_equal_float64(shape, channels_last, dtype, bias):
    compute = resolve_backend("triton", DEVICE)[1].frozen_prelu
    biases = {None: None, "channel": random(shape[1], seed=2), "picture": random(1, *shape[1:], seed=2)}
    values = [random(*shape), torch.linspace(-0.3, 1.4, shape[1]), biases[bias], random(*shape, seed=1)]
    x, slope, offset, upstream = (None if value is None else value.to(DEVICE, dtype) for value in values)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    x[0, 0] = 0
    results = []
    for function, to in ((compute, dtype), (reference.frozen_prelu, dtype), (reference.frozen_prelu, torch.float64)):
        leaf = x.detach().to(to).requires_grad_()
        y = function(leaf, slope.to(to), None if offset is None else offset.to(to))
        results.append((y.detach(), *torch.autograd.grad(y, leaf, upstream.to(to))))
    (ours, ours_grad), (torchs, torchs_grad), (exact, exact_grad) = results
    assert ours.stride() == torchs.stride()
    tiny = torch.finfo(dtype).eps
    for got, other, right in ((ours, torchs, exact), (ours_grad, torchs_grad, exact_grad)):
        own = (other.double() - right).abs().max()
        assert (got.double() - right).abs().max() <= max(2 * own, tiny * right.abs().max())


def test_numbers_worked_out_by_hand():
    for ops in (reference, resolve_backend("triton", DEVICE)[1]):
        x = torch.tensor([[-2.0, 0.0, 3.0], [1.0, -1.0, -4.0]], device=DEVICE, requires_grad=True)
        slope, bias = (torch.tensor(values, device=DEVICE) for values in ([0.5, 0.25, 0.0], [1.0, 0.0, 2.0]))
        y = ops.frozen_prelu(x, slope, bias)
        assert y.tolist() == [[-0.5, 0.0, 5.0], [2.0, -0.25, 0.0]]
        (grad,) = torch.autograd.grad(y, x, torch.full_like(y, 8.0))
        assert grad.tolist() == [[4.0, 2.0, 8.0], [8.0, 2.0, 0.0]]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own
@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_the_prelu_kernels_are_operators_that_pytorch_can_trace(channels_last):
    resolve_backend("triton", DEVICE)
    x = random(2, 6, 5, 3).to(DEVICE, memory_format=LAYOUTS[channels_last]).requires_grad_()
    slope, bias = (random(6, seed=seed).to(DEVICE) for seed in (1, 2))
    torch.library.opcheck(torch.ops.fastcloak.frozen_prelu.default, (x, slope, bias))
    signs = torch.ops.fastcloak.frozen_prelu(x, slope, bias)[1]
    torch.library.opcheck(torch.ops.fastcloak.frozen_prelu_grad.default, (x.detach(), signs, slope, channels_last))


# ---- networks


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_for_a_gpu_computes_the_same(dtype, channels_last):
    surrogate, upstream = resnet(), random(3, 8).to(DEVICE)
    results = []
    for prepared in (
        for_gpu(surrogate, dtype=dtype, channels_last=channels_last),
        prepare(surrogate, device=DEVICE, backend="reference", dtype=dtype, channels_last=channels_last),
        surrogate.copy().to(DEVICE).double(),
    ):
        x = faces().to(DEVICE, prepared.scale.dtype).requires_grad_()
        y = prepared(x)
        results.append([*torch.autograd.grad(y, x, upstream.to(y)), y.detach()])
    for got, plain, exact in zip(*results, strict=True):
        assert difference(got, exact) <= max(2 * difference(plain, exact), 1e-5)


def test_prelu_takes_over_biases_and_borders():
    prepared = for_gpu(resnet())
    modules = dict(prepared.net.named_modules())
    biases = [module.bias.shape for module in modules.values() if isinstance(module, FrozenPReLU)]
    assert biases == [(1, 6, 28, 28), (1, 5, 14, 14)]  # a padded convolution behind a norm, twice
    assert not [name for name, _ in prepared.net.named_buffers() if "border" in name]
    assert all(type(module) is not nn.Conv2d for module in modules.values())
    tiny = for_gpu(load_model(TinyNet())).net
    assert tiny.get_submodule("body.0").bias is None
    assert tiny.get_submodule("body.2").bias.shape == (8,)
    again = for_gpu(prepared)
    assert torch.equal(again(faces().to(DEVICE)), prepared(faces().to(DEVICE)))


def test_dropout_drops_the_same_numbers_where_prelu_adds_the_bias():
    results = []
    for backend in ("triton", "reference"):
        dropped = with_dropout(prepare(resnet(), device=DEVICE, backend=backend), 0.3)
        torch.manual_seed(5)
        results.append(dropped(faces().to(DEVICE)))
    assert difference(*results) <= 1e-5


def test_a_network_for_a_gpu_compiles_as_one_graph():
    prepared = for_gpu(resnet())
    x = faces().to(DEVICE).requires_grad_()
    compiled = torch.compile(lambda pictures: prepared(pictures), fullgraph=True, dynamic=False, backend="aot_eager")
    one, other = prepared(x), compiled(x)
    assert torch.equal(one, other)
    slopes = [torch.autograd.grad(y.square().sum(), x)[0] for y in (one, other)]
    assert torch.equal(*slopes)


def activations(surrogate):
    """Bytes that autograd keeps of one photo."""
    kept = {}

    def keep(tensor):
        if len(tensor) == 1:  # weights have more rows
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True), saved_tensors_hooks(keep, lambda tensor: tensor):
        surrogate(torch.zeros(1, 3, 112, 112, device=surrogate.device, requires_grad=True))
    return sum(storage.nbytes() for storage in kept.values())


SMALL_IRESNET = (1, 1, 1, 1)


@pytest.mark.parametrize("name", ["mobilefacenet", "iresnet", "sface"])
def test_what_is_kept_of_a_photo_is_less_than_half(name):
    if name == "sface":
        surrogate = load_model(name)
    else:
        net = nets.mobilefacenet() if name == "mobilefacenet" else nets.IResNet(SMALL_IRESNET).eval()
        surrogate = nets.surrogate(net, name)
    # channels_last would be tried out, in Triton's interpreter for a minute.
    options = {"device": DEVICE, "dtype": torch.bfloat16, "channels_last": False}
    before, after = (activations(prepare(surrogate, backend=backend, **options)) for backend in ("reference", "triton"))
    assert after < (0.5 if DEVICE.type == "cpu" else 1.01) * before


def test_a_pass_leaves_room_for_what_is_in_hand():
    surrogate, largest = for_gpu(resnet()), 4 * 4 * 28 * 28
    photos, config = 3, FitConfig()
    budget = 100 * (config.batch(photos) * 4 * largest + (3 * photos + 7) * 4 * 3 * 112 * 112)
    assert persons_per_pass(surrogate, config, budget)(photos) < 100


# ---- pictures around zero


def grey_levels_kept(surrogate):
    """How many of the 511 half grey levels from 0 to 255 a network in bfloat16 still tells apart."""
    levels = torch.arange(511) / 2 / 255
    pictures = levels.view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    return len(surrogate.net_input(surrogate.normalise(pictures))[:, 0, 0, 0].unique())


def test_sface_in_bfloat16_sees_every_half_grey_level():
    surrogate = load_model("sface")
    assert surrogate.scale.unique().tolist() == [255.0]
    plain = surrogate.copy()
    plain.net.to(torch.bfloat16)
    assert grey_levels_kept(plain) == 384
    prepared = prepare(surrogate, device="cpu", dtype=torch.bfloat16)
    assert grey_levels_kept(prepared) == 511
    assert prepared.scale.unique().tolist() == [255 / 128]
    # The factor is a power of two: in float32 the same numbers come out.
    centred = prepare(surrogate, device="cpu", dtype=torch.float32)
    expected = centred(faces())
    centre(centred)
    assert centred.scale.unique().tolist() == [255 / 128]
    assert torch.equal(centred(faces()), expected)


class Normalises(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.5, 2.0, 4.0]).view(3, 1, 1))
        self.conv = nn.Conv2d(3, 5, 8, 8, padding=4)

    def forward(self, x):
        return self.conv(0.5 + (x - self.mean) / self.std * 3).flatten(1)


class Takes(Normalises):
    """What it does first it also does later to something else."""

    def forward(self, x):
        return self.conv(x * 2 - x).flatten(1)


@pytest.mark.parametrize("bgr", [False, True])
def test_constants_by_channel_move_out_of_the_network_too(bgr):
    surrogate = load_model(Normalises(), scale=(2.0, 3.0, 4.0), shift=-1.0, bgr=bgr)
    prepared = prepare(surrogate, device="cpu", dtype=torch.bfloat16)
    assert not torch.equal(prepared.scale, surrogate.scale)
    prepared.net.float()
    assert F.cosine_similarity(prepared(faces()), surrogate(faces())).min() > 0.9999
    exact = prepare(surrogate, device="cpu")
    centre(exact)
    assert difference(exact(faces()), surrogate(faces())) <= 1e-5


@pytest.mark.parametrize("net", [Takes(), nn.Sequential(nn.Conv2d(3, 5, 8, 8), nn.Flatten())])
def test_a_network_that_begins_otherwise_keeps_its_normalisation(net):
    surrogate = load_model(net, scale=2.0)
    prepared = prepare(surrogate, device="cpu", dtype=torch.bfloat16)
    assert isinstance(prepared, Surrogate)
    assert torch.equal(prepared.scale, surrogate.scale)
    assert torch.equal(prepared.shift, surrogate.shift)
