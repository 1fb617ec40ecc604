"""Shared small things: a network and faces that need no download and no optional package; no way to the internet."""

import atexit
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import hypothesis
import pytest
import torch
from torch import nn

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported: the kernels run on CPU tensors

# Attempts are noted in a file, since the code under test may swallow the exception, and may be another process.
_NO_NETWORK = Path(__file__).parent / "no_network"
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")
if os.environ.get("FASTCLOAK_TEST_WORKER") != _WORKER:  # programs that tests start share their test's file
    os.environ["FASTCLOAK_TEST_WORKER"] = _WORKER
    os.environ["FASTCLOAK_TEST_NETWORK"] = tempfile.mkstemp(prefix="fastcloak-network-")[1]
    paths = [str(_NO_NETWORK), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if "sitecustomize" not in sys.modules or Path(sys.modules["sitecustomize"].__file__).parent != _NO_NETWORK:
        sys.path.insert(0, str(_NO_NETWORK))
        # Another module of this name may have been imported at Python's start.
        sys.modules.pop("sitecustomize", None)
        import_module("sitecustomize")
        sys.path.remove(str(_NO_NETWORK))
    atexit.register(os.remove, os.environ["FASTCLOAK_TEST_NETWORK"])
NETWORK_LOG = Path(os.environ["FASTCLOAK_TEST_NETWORK"])

# The same examples in every run, and no folder of earlier ones.
hypothesis.settings.register_profile("fastcloak", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("fastcloak")


class TinyNet(nn.Module):
    """112 px -> 16 numbers in under a millisecond; batch normalisation and PReLU as in the real networks."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 7, stride=4, padding=3, bias=False),
            nn.BatchNorm2d(8),
            nn.PReLU(8),
            nn.Conv2d(8, 16, 5, stride=4, padding=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(16 * 49, 16),
        )
        for module in self.body:
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
                if module.bias is not None:
                    module.bias.data = 0.1 * torch.randn(module.bias.shape, generator=generator)
        self.body[1].running_mean.uniform_(-0.2, 0.2, generator=generator)
        self.body[1].running_var.uniform_(0.5, 1.5, generator=generator)
        self.eval()

    def forward(self, x):
        return self.body(x * 2 - 1)


@pytest.fixture(autouse=True)
def float32_by_default(monkeypatch):
    """What is asserted to the last digits is float32: "auto" must not turn to bfloat16 on processors that have it."""
    if not torch.cuda.is_available():
        # The package exports a function of the module's name.
        monkeypatch.setattr(import_module("fastcloak.models.rewrites.prepare"), "has_fast_bfloat16", lambda *_: False)


@pytest.fixture(autouse=True)
def no_network():
    """Fails the test in which this process, or a Python program that it started, looked for another machine."""
    NETWORK_LOG.write_text("")
    yield
    attempts = NETWORK_LOG.read_text()
    assert not attempts, attempts


@pytest.fixture
def large_programs(monkeypatch):
    """Fewer programs for the views of whole faces: the interpreter takes its time for each, whatever its size."""
    if not torch.cuda.is_available():
        for name, value in (("views.PIXELS", 4096), ("views.EDGE", 64), ("photo.PIXELS", 4096), ("jpeg.BLOCK", 4096)):
            monkeypatch.setattr(f"fastcloak.kernels.{name}", value)


@pytest.fixture
def tiny_net():
    return TinyNet()


def smooth_faces(count, seed=0):
    """[count, 3, 112, 112] float in [0, 1] on the grid of grey levels: blobs that share a person-like base."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(1, 3, 14, 14, generator=generator)
    own = torch.rand(count, 3, 14, 14, generator=generator)
    faces = nn.functional.interpolate(0.6 * base + 0.4 * own, (112, 112), mode="bilinear")
    return (faces * 255).round() / 255


@pytest.fixture
def faces():
    return smooth_faces(6)
