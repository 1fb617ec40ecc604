"""prepare: a frozen copy that computes the same, with its batch normalisations folded away."""

import copy
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from fastcloak.models import load_model, prepare
from fastcloak.models.rewrites.fold import fold
from fastcloak.models.rewrites.prelu import FrozenPReLU
from fastcloak.ops import reference
from fastcloak.system.device import has_fast_bfloat16, without_tf32

CHANNELS = 6


def seeded(net, seed=0):
    """Random weights, and batch statistics far from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.is_floating_point():
                least = 0.5 if name == "running_var" else -0.5
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + least)
    return net.eval()


def norm(channels=CHANNELS):
    return nn.BatchNorm2d(channels, eps=1e-3)


def conv(out=CHANNELS, kernel=3, **options):
    return nn.Conv2d(CHANNELS, out, kernel, **options)


# name -> layers after a convolution to [n, 6, 9, 9] and a tanh that nothing folds through, and the norms that are left
FOLDS = {
    "conv_norm": ([conv(7), norm(7)], 0),
    "conv_norm_without_bias": ([conv(7, bias=False), norm(7)], 0),
    "conv_norm_groups": ([conv(4, groups=2, stride=2), norm(4)], 0),
    "norm_conv": ([norm(), conv(7)], 0),
    "norm_conv_padded": ([norm(), conv(7, padding=1)], 0),
    "norm_conv_padded_strided_no_bias": ([norm(), conv(5, 4, padding=(2, 1), stride=(2, 3), bias=False)], 0),
    "norm_conv_same": ([norm(), conv(5, padding="same")], 0),
    "norm_conv_depthwise": ([norm(), conv(12, groups=CHANNELS, padding=1)], 0),
    "norm_conv_groups": ([norm(), conv(4, groups=2)], 0),
    "norm_conv_dilated": ([norm(), conv(4, padding=2, dilation=2)], 0),
    "norm_pad_conv": ([norm(), nn.ZeroPad2d((0, 1, 2, 0)), conv(5)], 0),
    "pad_conv_norm": ([nn.ZeroPad2d(1), conv(5), norm(5)], 0),
    "norm_conv_norm": ([norm(), conv(7, padding=1, bias=False), norm(7)], 0),
    "norm_conv_reflected": ([norm(), conv(5, padding=1, padding_mode="reflect")], 1),
    "norm_without_weights": ([nn.BatchNorm2d(CHANNELS, affine=False), conv(7, padding=1)], 0),
    "norm_without_statistics": ([nn.BatchNorm2d(CHANNELS, track_running_stats=False), conv(7)], 1),
    "norm_flatten_linear": ([norm(), nn.Dropout(), nn.Flatten(), nn.Linear(486, 5)], 0),
    "norm_linear_norm": ([norm(), nn.Flatten(), nn.Linear(486, 5, bias=False), nn.BatchNorm1d(5)], 0),
    "norm_of_numbers_linear": ([nn.Flatten(), nn.Linear(486, 7), nn.ReLU(), nn.BatchNorm1d(7), nn.Linear(7, 4)], 0),
    "norm_relu": ([nn.ReLU(), norm(), nn.ReLU()], 1),
    "norm_norm": ([conv(7), norm(7), norm(7)], 0),
}


@pytest.mark.parametrize("name", FOLDS)
def test_folding_is_exact(name):
    layers, left = FOLDS[name]
    net = seeded(nn.Sequential(nn.Conv2d(3, CHANNELS, 3), nn.Tanh(), *copy.deepcopy(layers)))
    pictures = torch.rand(3, 3, 11, 11, generator=torch.Generator().manual_seed(1)) - 0.5
    exact = copy.deepcopy(net).double()(pictures.double())
    folded = fx.symbolic_trace(copy.deepcopy(net))
    assert fold(folded, pictures[:1]) == left
    assert sum(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in folded.modules()) == left
    assert difference(folded.float()(pictures), exact) <= 1e-5
    # the folding itself, without the rounding of float32
    exactly = fx.symbolic_trace(copy.deepcopy(net).double())
    fold(exactly, pictures[:1].double())
    assert difference(exactly(pictures.double()), exact) <= 1e-12


def test_symmetric_padding_is_left_to_the_convolution():
    net = fx.symbolic_trace(seeded(nn.Sequential(nn.Conv2d(3, CHANNELS, 1), nn.ZeroPad2d((2, 2, 1, 1)), conv(5))))
    pictures = torch.rand(2, 3, 9, 9)
    expected = net(pictures)
    fold(net, pictures[:1])
    assert [type(module) for module in net.children()] == [nn.Conv2d, nn.Conv2d]
    assert torch.allclose(net.float()(pictures), expected, atol=1e-6)


class Block(nn.Module):
    """The iResNet block: its first norm stands before a padded convolution, and the shortcut goes around it."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, 1, 1, bias=False)
        self.norm2, self.prelu = norm(out), nn.PReLU(out)
        self.conv2, self.norm3 = nn.Conv2d(out, out, 3, stride, 1, bias=False), norm(out)
        self.down = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), norm(out))

    def forward(self, x):
        return self.norm3(self.conv2(self.prelu(self.norm2(self.conv1(self.norm1(x)))))) + self.down(x)


class SmallResNet(nn.Module):
    def __init__(self, flatten):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 7, 4, 3, bias=False), norm(4)
        self.blocks = nn.Sequential(Block(4, 6, 2), Block(6, 5, 2))
        self.last, self.fc, self.features = norm(5), nn.Linear(5 * 49, 8), nn.BatchNorm1d(8)
        self.flatten = flatten

    def forward(self, x):
        x = self.last(self.blocks(torch.relu(self.norm(self.stem(x)))))
        return self.features(self.fc(self.flatten(F.dropout(x, training=self.training))))


def difference(got, expected):
    return (got - expected).abs().max() / expected.abs().max()


FLATTENS = {
    "flatten": lambda x: torch.flatten(x, 1),
    "method": lambda x: x.flatten(1),
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "view": lambda x: x.view(x.size(0), -1),
}


def faces(n=3):
    return torch.rand(n, 3, 112, 112, generator=torch.Generator().manual_seed(2))


def resnet(flatten="flatten", **options):
    return load_model(seeded(SmallResNet(FLATTENS[flatten])), **options)


@pytest.mark.parametrize("flatten", FLATTENS)
@pytest.mark.parametrize("channels_last", [False, True, None])
def test_a_network_in_the_style_of_arcface_folds_completely(flatten, channels_last):
    surrogate = resnet(flatten, scale=2.0, shift=-1.0)
    prepared = prepare(surrogate, channels_last=channels_last)
    assert prepared.folded
    assert prepared.notes[0] == "folded, 0 batch normalisations left"
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    # A `view` needs contiguous memory.
    contiguous = flatten == "view" or channels_last is False
    assert prepared.memory_format == (torch.contiguous_format if contiguous else torch.channels_last)
    said = "contiguous: it does not work on channels_last memory" in prepared.notes
    assert said == (flatten == "view" and channels_last is not False)
    assert surrogate.memory_format == torch.contiguous_format
    x, y = faces().requires_grad_(), faces().requires_grad_()
    expected, got = surrogate(x), prepared(y)
    assert difference(got, expected) <= 1e-5
    (a,) = torch.autograd.grad(expected.square().sum(), x)
    (b,) = torch.autograd.grad(got.square().sum(), y)
    assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.9999


@pytest.mark.promise("P5")
def test_the_given_surrogate_is_untouched():
    surrogate = resnet()
    before = {name: tensor.clone() for name, tensor in surrogate.state_dict().items()}
    expected = surrogate(faces())
    random = torch.get_rng_state()
    assert prepare(surrogate, dtype=torch.bfloat16, channels_last=True) is not surrogate
    assert torch.equal(random, torch.get_rng_state())
    assert (surrogate.folded, surrogate.notes, surrogate.dtype) == (False, (), torch.float32)
    after = surrogate.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(surrogate(faces()), expected)


def test_a_prepared_surrogate_keeps_its_description():
    surrogate = resnet(name="mine", scale=2.0, mean_embedding=[0.5] * 8)
    prepared = prepare(surrogate)
    for attribute in ("name", "input_size", "embedding_size", "bgr", "device"):
        assert getattr(prepared, attribute) == getattr(surrogate, attribute)
    assert torch.equal(prepared.mean_embedding, surrogate.mean_embedding)
    assert not prepared.training
    assert not any(parameter.requires_grad for parameter in prepared.parameters())


@pytest.mark.parametrize("kind", ["resnet", "prelu"])
def test_preparing_twice_changes_nothing(kind, tiny_net):
    once = prepare(resnet() if kind == "resnet" else load_model(tiny_net))
    twice = prepare(once)
    assert once.folded
    assert twice.folded
    assert torch.equal(twice(faces()), once(faces()))


def test_bfloat16_takes_and_returns_float32():
    surrogate = resnet(scale=(2.0, 1.9, 2.1), shift=-1.0)
    prepared = prepare(surrogate, dtype=torch.bfloat16)
    assert (prepared.dtype, prepared.scale.dtype) == (torch.bfloat16, torch.float32)
    x = faces().requires_grad_()
    got = prepared(x)
    assert got.dtype == torch.float32
    assert torch.autograd.grad(got.sum(), x)[0].dtype == torch.float32
    assert F.cosine_similarity(got, surrogate(faces()), dim=1).min() > 0.999


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.calls = nn.Conv2d(3, 3, 3, padding=1), norm(3), 0


class LooksAtNumbers(Small):
    def forward(self, x):
        x = self.norm(self.conv(x)).mean((2, 3))
        return x if x.sum() > 0 else -x


class CountsItsCalls(Small):
    """Traces without an error, but wrongly: what it does depends on state that tracing freezes."""

    def forward(self, x):
        self.calls += 1
        return self.norm(self.conv(x)).mean((2, 3)) * (1 if self.calls % 2 else 1.5)


class UsesItsNormTwice(Small):
    def forward(self, x):
        return self.norm(self.conv(self.norm(self.conv(x)))).mean((2, 3))


class Hooked(SmallResNet):
    def __init__(self):
        super().__init__(FLATTENS["flatten"])
        self.stem.register_forward_hook(lambda module, args, output: output * 2)


@pytest.mark.parametrize(
    ("net", "folded", "note"),
    [
        (LooksAtNumbers, False, "not folded: it cannot be traced (TraceError"),
        (CountsItsCalls, False, "not folded: that would change embeddings by"),
        (Hooked, False, "not folded: it has forward hooks"),
        (UsesItsNormTwice, True, "folded, 1 batch normalisations left"),
    ],
)
def test_what_cannot_be_folded_stays_and_is_said(net, folded, note):
    surrogate = load_model(seeded(net()))
    prepared = prepare(surrogate)
    assert prepared.folded == folded
    assert prepared.notes[0].startswith(note)
    if net is not CountsItsCalls:
        assert difference(prepared(faces()), surrogate(faces())) <= 1e-5


@pytest.fixture
def tf32(monkeypatch):
    """Convolutions and linear layers round their operands to ten bits, as a GPU does where PyTorch allows TF32."""

    def rounded(tensor):
        bits = tensor.contiguous().view(torch.int32)
        return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)

    def emulated(function, allowed):
        def compute(x, weight, *rest):
            if x.dtype == torch.float32 and allowed():
                x, weight = rounded(x), rounded(weight)
            return function(x, weight, *rest)

        return compute

    monkeypatch.setattr(F, "conv2d", emulated(F.conv2d, lambda: torch.backends.cudnn.allow_tf32))
    monkeypatch.setattr(F, "linear", emulated(F.linear, lambda: torch.backends.cuda.matmul.allow_tf32))
    torch.backends.cuda.matmul.allow_tf32 = True  # it is not by default; cudnn's is
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("name", ["resnet", "sface"])
def test_networks_fold_on_devices_that_round_to_tf32(name, tf32):
    surrogate = resnet() if name == "resnet" else load_model(name)
    with torch.no_grad():
        folded = fx.symbolic_trace(copy.deepcopy(surrogate.net))
        pictures = surrogate.net_input(surrogate.normalise(faces(2)))
        fold(folded, pictures[:1])
        assert difference(folded.float()(pictures), surrogate.net(pictures)) > 1e-4  # what was compared before
    assert prepare(surrogate, channels_last=False).notes[0] == "folded, 0 batch normalisations left"


SWITCHES = {
    "as PyTorch starts": {},
    "allow_tf32": {"cudnn.allow_tf32": False, "cuda.matmul.allow_tf32": True},
    "fp32_precision": {"cudnn.conv.fp32_precision": "ieee", "cuda.matmul.fp32_precision": "tf32"},
}


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="fp32_precision came with PyTorch 2.9")
@pytest.mark.parametrize("name", SWITCHES)
def test_tf32_is_off_in_the_context_and_then_as_before(name, monkeypatch):
    def precisions():
        return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision

    start = precisions()
    try:
        for switch, value in SWITCHES[name].items():
            place, attribute = switch.rsplit(".", 1)
            setattr(attrgetter(place)(torch.backends), attribute, value)
        before = precisions()
        with pytest.raises(KeyError), without_tf32():
            raise KeyError
        with ThreadPoolExecutor(4) as pool:
            seen = list(pool.map(lambda _: within(precisions), range(50)))
        assert not any("tf32" in one for one in seen)
        assert precisions() == before
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
        torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = start


def within(precisions):
    with without_tf32():
        return precisions()


def test_threads_may_prepare_and_run_networks_at_once():
    patched = nn.Module.__call__, nn.Module.__getattr__
    surrogate, mine, pictures = resnet(), seeded(SmallResNet(FLATTENS["flatten"])), faces(1)
    expected = mine(pictures)
    done = threading.Event()

    def runs():
        while not done.is_set():
            assert torch.equal(mine(pictures), expected)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            runner = pool.submit(runs)
            try:
                prepared = list(pool.map(lambda _: prepare(surrogate), range(9)))
            finally:
                done.set()
            runner.result()
        left = nn.Module.__call__, nn.Module.__getattr__
    finally:
        sys.setswitchinterval(interval)
        nn.Module.__call__, nn.Module.__getattr__ = patched
    assert left == patched
    assert [one.notes for one in prepared] == [("folded, 0 batch normalisations left",)] * 9


def test_a_callable_is_used_unchanged():
    def mean_colour(pictures):
        return pictures.mean((2, 3))

    prepared = prepare(load_model(mean_colour, scale=2.0), dtype=torch.bfloat16)
    assert prepared.net is mean_colour
    assert prepared.notes == ("not a torch module: used unchanged, in its own dtype and layout",)
    assert torch.allclose(prepared(faces()), 2 * faces().mean((2, 3)), atol=1e-6)


def test_every_member_of_an_ensemble_is_prepared():
    ensemble = load_model([resnet(), seeded(LooksAtNumbers())])
    prepared = prepare(ensemble)
    assert [member.folded for member in prepared.members] == [True, False]
    assert not prepared.folded
    assert prepared.notes[0] == "SmallResNet: folded, 0 batch normalisations left"
    assert prepared.name == ensemble.name
    assert (prepared(faces()) - ensemble(faces())).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["sface", "dlib"])
def test_the_real_networks_fold_completely_and_silently(name, capsys, caplog):
    surrogate = load_model(name)
    with caplog.at_level(logging.INFO):
        prepared = prepare(surrogate)
    assert prepared.notes[0] == "folded, 0 batch normalisations left"
    assert difference(prepared(faces(2)), surrogate(faces(2))) <= 1e-5
    assert capsys.readouterr().out == ""
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu9"}, r"device must be 'auto' or a device that this machine has, got 'tpu9'"),
        ({"dtype": torch.float16}, r"dtype must be torch\.float32 or torch\.bfloat16, got torch\.float16"),
        ({"dtype": torch.int8}, r"dtype must be torch\.float32 or torch\.bfloat16, got torch\.int8"),
    ],
)
def test_another_device_or_dtype_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        prepare(resnet(), **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (3, 6)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_frozen_prelu_equals_prelu_and_its_gradient(dtype, channels, shape, channels_last):
    layout = torch.channels_last if channels_last and len(shape) == 4 else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    prelu = nn.PReLU(channels).to(dtype)
    prelu.weight.data = torch.linspace(-0.3, 1.4, channels, dtype=dtype)
    x, upstream = (torch.randn(shape, generator=generator, dtype=dtype).to(memory_format=layout) for _ in range(2))
    x[0, 0] = 0  # where the slope on the left counts, as in nn.PReLU
    results = []
    for module in (prelu, FrozenPReLU(prelu.weight, reference)):
        leaf = x.clone().requires_grad_()
        output = module(leaf)
        results.append((output.detach(), *torch.autograd.grad(output, leaf, upstream)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], rtol=torch.finfo(dtype).eps, atol=0)


def test_prelu_is_frozen_on_a_cpu_but_not_under_a_hook():
    net = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.PReLU(4), nn.Flatten(), nn.Linear(784, 6))
    assert sum(isinstance(module, FrozenPReLU) for module in prepare(load_model(net), device="cpu").modules()) == 1
    seen = []
    net[1].register_forward_hook(lambda *_: seen.append(1))
    hooked = prepare(load_model(net), device="cpu")
    seen.clear()
    hooked(torch.rand(1, 3, 112, 112))
    assert seen == [1]


@pytest.mark.parametrize(("amx", "avx512"), [(False, False), (False, True), (True, True)])
def test_bfloat16_is_chosen_where_the_processor_is_fast_with_it(monkeypatch, amx, avx512):
    ends = [nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(784, 6)]
    plain = load_model(nn.Sequential(*ends))
    grouped = load_model(nn.Sequential(ends[0], nn.Conv2d(4, 4, 1, groups=4), *ends[1:]))
    # By name, since the function `prepare` hides the module.
    monkeypatch.setattr(sys.modules["fastcloak.models.rewrites.prepare"], "has_fast_bfloat16", has_fast_bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert (prepare(plain, device="cpu", dtype=None).dtype == torch.bfloat16) == (amx or avx512)
    assert (prepare(grouped, device="cpu", dtype=None).dtype == torch.bfloat16) == amx
    assert prepare(plain, device="cpu").dtype == torch.float32
