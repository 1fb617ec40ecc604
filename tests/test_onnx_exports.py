"""Networks as users export them: PyTorch's exporter writes the file, onnxruntime says what it computes."""

import math
import pickle
import warnings

import onnx
import pytest
import torch
from test_onnx_import import by_onnxruntime
from torch import nn
from torch.nn import functional as F

from fastcloak.models import load_model, prepare
from fastcloak.models.onnx.reader import load_onnx_net
from fastcloak.models.rewrites.dropout import with_dropout

SIDE = 32


class Attention(nn.Module):
    """Self-attention as timm writes it, by hand or by scaled_dot_product_attention."""

    def __init__(self, width, heads, fused=False):
        super().__init__()
        self.heads, self.scale, self.fused = heads, (width // heads) ** -0.5, fused
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(n, length, width))


class ViT(nn.Module):
    """Patches, a class token, positions, blocks of attention and a perceptron, a norm."""

    def __init__(self, width=24, depth=1, heads=4, fused=False):
        super().__init__()
        self.fused = fused
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (SIDE // 8) ** 2 + 1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.attentions = nn.ModuleList(Attention(width, heads, fused) for _ in range(depth))
        self.perceptrons = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 16)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for i, (attention, perceptron) in enumerate(zip(self.attentions, self.perceptrons, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + perceptron(self.norms[2 * i + 1](x))
        x = self.norm(x)
        return F.normalize(self.head(x[:, 1:].mean(1) if self.fused else x[:, 0]))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a picture, written out."""

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(var + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class EdgeBlock(nn.Module):
    """Split convolutions, Fourier positions, attention across channels, an inverted bottleneck: EdgeNeXt's SDTA."""

    def __init__(self, width=24, heads=4, scales=3):
        super().__init__()
        self.heads, self.each = heads, width // scales
        self.convs = nn.ModuleList(
            nn.Conv2d(self.each, self.each, 3, padding=1, groups=self.each) for _ in range(scales - 1)
        )
        self.project = nn.Conv2d(16, width, 1)
        self.norm_of_attention, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.gamma = nn.Parameter(0.5 * torch.ones(width))

    def positions(self, n, height, width):
        there = torch.ones(n, height, width)
        y, x = there.cumsum(1) / height * 2 * math.pi, there.cumsum(2) / width * 2 * math.pi
        steps = 100 ** (2 * torch.div(torch.arange(8, dtype=torch.float32), 2, rounding_mode="floor") / 8)
        x, y = x[..., None] / steps, y[..., None] / steps
        x, y = (torch.stack((p[..., 0::2].sin(), p[..., 1::2].cos()), 4).flatten(3) for p in (x, y))
        return self.project(torch.cat((y, x), 3).permute(0, 3, 1, 2))

    def attention(self, x):
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 4, 1)
        q, k = F.normalize(qkv[0], dim=-1), F.normalize(qkv[1], dim=-1)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)
        return self.proj((weights @ qkv[2]).permute(0, 3, 1, 2).reshape(n, length, width))

    def forward(self, x):
        given = x
        parts, last, done = torch.split(x, self.each, 1), None, []
        for part, conv in zip(parts, self.convs, strict=False):
            last = conv(part if last is None else last + part)
            done.append(last)
        x = torch.cat([*done, parts[-1]], 1)
        n, channels, height, width = x.shape
        x = x.reshape(n, channels, height * width).permute(0, 2, 1)
        x = x + self.positions(n, height, width).reshape(n, channels, -1).permute(0, 2, 1)
        x = x + self.gamma * self.attention(self.norm_of_attention(x))
        x = self.gamma * self.perceptron(self.norm(x.reshape(n, height, width, channels)))
        return given + x.permute(0, 3, 1, 2)


def edgeface():
    return nn.Sequential(
        nn.Conv2d(3, 24, 4, 4), ChannelNorm(24), EdgeBlock(), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1),
        nn.LayerNorm(24), nn.Linear(24, 16),
    )  # fmt: skip


class IResBlock(nn.Module):
    def __init__(self, channels, out):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels), nn.Conv2d(channels, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
            nn.PReLU(out), nn.Conv2d(out, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(out, 4, 1), nn.ReLU(), nn.Conv2d(4, out, 1), nn.Hardsigmoid()
        )
        self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, 2, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        made = self.body(x)
        return made * self.squeeze(made) + self.shortcut(x)


class IResNet(nn.Module):
    """Blocks of an improved ResNet; the norm at the end as AdaFace writes it, which returns the length too."""

    def __init__(self):
        super().__init__()
        self.input = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8))
        self.blocks = nn.Sequential(IResBlock(8, 16), IResBlock(16, 16))
        self.output = nn.Sequential(
            nn.BatchNorm2d(16), nn.Dropout(0.4), nn.Flatten(), nn.Linear(16 * (SIDE // 4) ** 2, 16), nn.BatchNorm1d(16)
        )

    def forward(self, x):
        x = self.output(self.blocks(self.input((x - 0.5) / 0.5)))
        length = torch.norm(x, 2, 1, True)
        return torch.div(x, length), length


class Inception(nn.Module):
    """FaceNet's: branches, a scaled residual, pooling."""

    def __init__(self):
        super().__init__()
        conv = [nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU(), nn.MaxPool2d(3, 2)]
        self.stem, self.left = nn.Sequential(*conv), nn.Conv2d(8, 4, 1)
        self.right = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, (1, 7), padding=(0, 3)))
        self.join, self.last, self.norm = nn.Conv2d(8, 8, 1), nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.join(torch.cat((self.left(x), self.right(x)), 1)) * 0.17 + x)
        x = F.adaptive_avg_pool2d(x, 1)
        return F.normalize(self.norm(self.last(x.view(x.shape[0], -1))), p=2, dim=1)


class Odds(nn.Module):
    """The other operators that exporters write out: group and instance norms, gates, efficient channel attention."""

    def __init__(self):
        super().__init__()
        self.conv, self.across = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.group, self.instance = nn.GroupNorm(4, 12), nn.InstanceNorm2d(12, affine=True)
        self.last = nn.Linear(24, 16)

    def forward(self, x):
        x = torch.cat((x.flip(1)[:, :2], x[:, 2:].flip(3)), 1)
        x = F.elu(self.group(self.conv(x)))
        x = x * self.across(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).sigmoid()
        x = F.softplus(self.instance(x)) * torch.tanh(x)
        x = F.interpolate(x, scale_factor=0.5, mode="bilinear")
        x = torch.where(torch.arange(x.shape[-1]) < 5, x, torch.zeros(()))
        most, mean = F.adaptive_max_pool2d(x, 1), x.mean((2, 3), keepdim=True)
        x = torch.cat((most, mean), 1).flatten(1)
        return self.last(x / x.norm(dim=1, keepdim=True)) ** 3


class Mirrored(Inception):
    """The mean of a picture and its mirror image, which go through as one batch."""

    def forward(self, x):
        return super().forward(torch.cat([x, x.flip(3)])).reshape(2, -1, 16).mean(0)


class Windows(nn.Module):
    """Attention in shifted windows, which are merged with the batch, with a table of positions: Swin."""

    def __init__(self):
        super().__init__()
        self.patches, self.attention, self.last = nn.Conv2d(3, 16, 4, 4), Attention(16, 2), nn.Linear(16, 16)
        self.table = nn.Parameter(torch.randn(49, 16))
        self.register_buffer("index", torch.arange(49).repeat(6)[: 16 * 16].reshape(16, 16))

    def forward(self, x):
        x = torch.roll(self.patches(x).permute(0, 2, 3, 1), (-2, -2), (1, 2))
        n, height, width, channels = x.shape
        x = x.view(n, height // 4, 4, width // 4, 4, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels)
        x = self.attention(x + self.table[self.index.view(-1)].view(16, 16, 16).mean(0))
        x = x.view(n, height // 4, width // 4, 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        x = torch.roll(x.reshape(n, height, width, channels), (2, 2), (1, 2))
        return self.last(x.mean((1, 2)))


class Encoder(nn.Module):
    """PyTorch's own transformer, tokens or pictures in front."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first, self.patches = batch_first, nn.Conv2d(3, 24, 8, 8)
        self.layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=batch_first, norm_first=batch_first)

    def forward(self, x):
        x = self.patches(x).flatten(2).permute((0, 2, 1) if self.batch_first else (2, 0, 1))
        return self.layer(x).mean(1 if self.batch_first else 0)


NETS = {
    "vit": ViT,
    "edgeface": edgeface,
    "iresnet": IResNet,
    "facenet": Inception,
    "odds": Odds,
    "mirrored": Mirrored,
    "windows": Windows,
    "encoder": lambda: Encoder(True),
    "encoder_tokens_in_front": lambda: Encoder(False),
    "vit_fused": lambda: ViT(fused=True),
}


def network(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NETS[name]()
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval().requires_grad_(False)


def exported(net, path, opset, batch):
    free = {"x": {0: "n"}, "y": {0: "n"}} if batch == "free" else None
    # a batch of 2 where it is free: exporters write some things otherwise for 1
    pictures = torch.rand(2 if free else 1, 3, SIDE, SIDE)
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": free}
    # What it runs PyTorch's own transformers on otherwise cannot be exported.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(net, (pictures,), path, opset_version=opset, dynamo=False, **names)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return path


# Exporters write some things otherwise from opsets 13, 14, 16, 17, 18 and 20 on.
WRITTEN = [
    *(("vit", "free", opset) for opset in (11, 13, 14, 16, 17, 18, 20)),
    *((name, "free", opset) for name in ("edgeface", "odds") for opset in (11, 13, 17, 18, 20)),
    *((name, "free", opset) for name in ("iresnet", "facenet") for opset in (11, 13, 18)),
    *((name, "one", opset) for name in ("vit", "edgeface", "iresnet", "odds") for opset in (11, 18)),
    *((name, *how) for name in list(NETS)[5:] for how in (("free", 14), ("one", 14), ("free", 20))),
]


@pytest.mark.parametrize(("name", "batch", "opset"), WRITTEN)
def test_an_exported_network_agrees_with_onnxruntime_picture_by_picture(tmp_path, name, batch, opset):
    net, pictures = network(name), torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    path = exported(net, tmp_path / "net.onnx", opset, batch)
    expected = torch.cat([by_onnxruntime(onnx.load(path), picture[None]) for picture in pictures])
    faces = pictures.clone().requires_grad_()
    got = load_onnx_net(path).net(faces)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * max(1, float(expected.abs().max()))
    # the gradient is that of the network that was exported
    direction = torch.randn(got.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((got * direction).sum(), faces)
    original = net(faces)
    original = original[0] if isinstance(original, tuple) else original
    (right,) = torch.autograd.grad((original * direction).sum(), faces)
    assert right.abs().max() > 0
    assert (gradient - right).abs().max() <= 1e-4 * right.abs().max()


@pytest.mark.parametrize("name", NETS)
def test_an_exported_network_is_sent_folded_and_dropped_from(tmp_path, name):
    surrogate = load_model(exported(network(name), tmp_path / "net.onnx", 17, "free"), scale=2.0, shift=-1.0)
    faces = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(4))
    expected = surrogate(faces)
    assert torch.equal(pickle.loads(pickle.dumps(surrogate))(faces), expected)
    prepared = prepare(surrogate)
    assert prepared.folded, prepared.notes
    assert prepared.notes[0] == "folded, 0 batch normalisations left"
    assert (prepared(faces) - expected).abs().max() <= 1e-5 * expected.abs().max()
    dropped = with_dropout(prepared, 0.2)
    assert not torch.equal(dropped(faces), dropped(faces))
    assert with_dropout(prepared, 0.0)(faces).allclose(prepared(faces), atol=1e-6)
    low = prepare(surrogate, dtype=torch.bfloat16)
    assert F.cosine_similarity(low(faces), expected).min() > 0.99
