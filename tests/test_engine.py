"""Engines: what launches a step must not change what it computes. Graphs are those of tests/cuda_graphs.py."""

import shutil
import threading
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastcloak import fit, fit_many, load_model
from fastcloak.fitting.loop import Loop
from fastcloak.fitting.options import FitConfig
from fastcloak.models import prepare, unit_features
from fastcloak.ops import reference
from fastcloak.ops.engine import Launcher, Progress, network, resolve_engine
from fastcloak.ops.watch import Watch
from fastcloak.system.errors import EngineError
from tests.conftest import TinyNet, smooth_faces
from tests.cuda_graphs import fake_cuda
from tests.test_same_cloaks import FITS, fitted

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="torch.compile on a CPU needs a C++ compiler"
)


def test_auto_is_eager_on_a_cpu_and_a_graph_on_cuda():
    assert resolve_engine("auto", CPU) == "eager"
    assert resolve_engine("auto", CUDA) == "cudagraph"
    assert resolve_engine("compile", CPU) == "compile"


def test_wishes_that_cannot_be_met_are_refused_with_a_hint():
    with pytest.raises(ValueError, match="'cudagraph' needs a CUDA device, got cpu; use 'eager'"):
        resolve_engine("cudagraph", CPU)
    with pytest.raises(ValueError, match="engine must be one of auto, eager, compile, cudagraph, got 'fast'"):
        resolve_engine("fast", CPU)


@needs_compiler
@pytest.mark.promise("P14")
def test_compile_fits_the_same_cloak(tiny_net, faces):
    options = {"steps": 3, "warmup": 1, "batch_size": 2, "device": "cpu"}
    eager, compiled = (fit(faces, tiny_net, engine=engine, **options) for engine in ("eager", "compile"))
    assert compiled.info["engine"] == "compile"
    assert compiled.info["losses"] == pytest.approx(eager.info["losses"], rel=1e-5)
    assert (compiled.delta != eager.delta).float().mean() < 0.002


@needs_compiler
def test_compile_refuses_what_it_cannot_compile(tiny_net, faces):
    seen = []

    def reads_back(x):
        seen.append(x[0, 0, 0, 0].item())
        return tiny_net(x)

    with pytest.raises(EngineError, match="engine 'compile' cannot run this network: .*; use engine='eager'"):
        fit(faces, reads_back, engine="compile", steps=3, device="cpu")
    assert fit(faces, reads_back, steps=1, device="cpu", engine="eager").info["engine"] == "eager"


@needs_compiler
@pytest.mark.parametrize("same", [1, 3])
def test_a_recompilation_is_an_error(same):
    double = network("compile", lambda x: x * 2)
    launch = Launcher("compile", CPU)
    for _ in range(same):
        launch("step", lambda: double(torch.ones(3)))
    with pytest.raises(EngineError, match="(?i)engine 'compile' cannot run this network: .*recompil.*engine='eager'"):
        launch("step", lambda: double(torch.ones(4)))


@needs_compiler
def test_more_networks_than_torch_would_recompile_for():
    for i in range(12):
        assert network("compile", lambda x, i=i: x * i)(torch.ones(3)).sum() == 3 * i


def test_on_a_cpu_a_step_runs_when_it_is_launched_and_progress_is_immediate():
    calls, ticks = [], []
    Launcher("eager", CPU)("step", lambda: calls.append(1))
    assert calls == [1]
    progress = Progress(CPU, lambda: ticks.append(1))
    progress.launched()
    assert ticks == [1]
    progress.wait()
    assert ticks == [1]


@pytest.mark.promise("P7")
def test_buffers_are_kept_for_the_next_pass_and_leak_nothing_into_it(tiny_net):
    # Three passes of one size, then one of another: each cloak must be that of a fresh start.
    people = {str(i): smooth_faces(4 if i < 3 else 5, seed=i) for i in range(4)}
    options = {"steps": 3, "warmup": 1, "decay": 0.9, "device": "cpu"}
    cloaks = fit_many(people, tiny_net, **options)
    for name, photos in people.items():
        alone = fit(photos, tiny_net, **options)
        assert torch.equal(cloaks[name].delta, alone.delta)
        for key in ("losses", "hull_gap"):
            assert cloaks[name].info[key] == alone.info[key]


# ---- graphs


@pytest.fixture
def cuda_graphs(monkeypatch):
    return fake_cuda(monkeypatch)


@pytest.fixture
def any_weights(monkeypatch):
    """The reference's hull takes LAPACK, and on a CPU asks whether it is exact; these weights need neither."""

    def weights(gram, correlation, lower, upper):
        share = torch.softmax(correlation.double(), -1)
        return share, torch.zeros_like(share[..., 0])

    monkeypatch.setattr(reference, "convex_weights", weights)
    for user in ("learner", "fitter"):
        monkeypatch.setattr(f"fastcloak.fitting.{user}.capturable", lambda ops, objective: True)


FITTED_IN_GRAPHS = {
    **{name: {**options, "warmup": 2, "steps": 5} for name, options in FITS.items()},
    "opom, grey, average": {"method": "opom", "warmup": 2, "grey": True, "average": 0.5, "steps": 5},
    "turns that change": {"ensemble": "turns", "inner_steps": 3, "networks": 2, "warmup": 2, "steps": 7},
}


@pytest.mark.promise("P14")
@pytest.mark.parametrize("name", FITTED_IN_GRAPHS)
def test_a_graph_gives_the_cloak_of_eager_bit_for_bit(cuda_graphs, any_weights, monkeypatch, name):
    monkeypatch.setattr("fastcloak.ops.engine.WARM_UP", 1)
    eager, graph = (fitted(FITTED_IN_GRAPHS[name], engine=engine) for engine in ("eager", "cudagraph"))
    assert graph.info["engine"] == "cudagraph"
    assert cuda_graphs.named("replay")
    assert torch.equal(graph.delta, eager.delta)
    assert graph.info["losses"] == eager.info["losses"]


def a_loop(net, engine="cudagraph", **options):
    """A loop, and what it learns from."""
    surrogate = prepare(load_model(net), device="cpu", dtype=torch.float32)
    faces = smooth_faces(4)
    loop = Loop(surrogate, FitConfig(**options), reference, engine, 1, len(faces))
    return loop, faces[None], unit_features(surrogate, faces)[None]


@pytest.mark.promise("P14")
def test_no_step_is_thrown_away_and_graphs_last_from_pass_to_pass(cuda_graphs, any_weights):
    calls = []

    def spy(x):
        calls.append(len(x))
        return net(x)

    net = TinyNet()
    loop, *person = a_loop(spy, inner_steps=2)
    eager = a_loop(spy, "eager", inner_steps=2)[0].learn(*person)
    for captures, replays, launched in ((2, 12, 4), (2, 16, 0)):
        calls.clear()
        cuda_graphs.log.clear()
        learnt = loop.learn(*person)
        # Of 16 steps the first three, and the first on another objective, are launched directly.
        ran = len(calls) // 2
        new = len(cuda_graphs.named("capture"))
        assert (ran - new, len(cuda_graphs.named("replay"))) == (launched, replays)
        assert new == (captures if launched else 0)
        assert torch.equal(learnt.delta, eager.delta)
        assert torch.equal(learnt.losses, eager.losses)


def test_graphs_share_one_stream_and_pool_and_hold_no_workspace_of_others(cuda_graphs, any_weights):
    loop, *person = a_loop(TinyNet(), inner_steps=2)
    loop.learn(*person)
    places = [entry[2:] for entry in cuda_graphs.named("capture")]
    assert places == [(cuda_graphs.pools[0], cuda_graphs.streams[0])] * 2
    assert len(cuda_graphs.pools) == len(cuda_graphs.streams) == 1
    around = [entry[0] for entry in cuda_graphs.log if entry[0] != "replay"]
    assert around == ["clear", "capture", "clear"] * 2
    assert cuda_graphs.current == "default"


def test_a_loop_and_its_graphs_go_with_the_last_name_for_them(cuda_graphs, any_weights):
    loop, *person = a_loop(TinyNet(), inner_steps=2)
    loop.learn(*person)
    gone = [weakref.ref(loop), *(weakref.ref(entry[1]) for entry in cuda_graphs.named("capture"))]
    cuda_graphs.log.clear()
    del loop
    assert [one() for one in gone] == [None] * 3


@pytest.mark.parametrize("stopped", [2, 7, 10])
def test_a_pass_in_graphs_goes_on_from_any_step(cuda_graphs, any_weights, stopped):
    options = {"inner_steps": 2, "decay": 1.0, "average": 0.5, "dropout": 0.1}
    states = []
    loop, *person = a_loop(TinyNet(), **options)
    whole = loop.learn(*person, keep=lambda learnt, save: states.append(save()))
    for again in (loop, a_loop(TinyNet(), **options)[0]):
        learnt = again.learn(*person, saved=states[stopped])
        assert torch.equal(learnt.delta, whole.delta)
        assert torch.equal(learnt.losses, whole.losses)


def test_a_step_may_be_launched_more_often_than_a_pass_has_steps(cuda_graphs):
    loop, *person = a_loop(TinyNet(), inner_steps=2, objective="class_center", steps=4)
    loop.learn(*person)
    for _ in range(6):
        loop.launch(3)
    assert loop.state.t.item() == 2


def test_what_was_learnt_is_not_changed_by_the_next_pass(tiny_net):
    loop, faces, features = a_loop(tiny_net, "eager", inner_steps=2, steps=3)
    first = loop.learn(faces, features)
    before = first.delta.clone(), first.losses.clone()
    loop.learn(faces.flip(1) * 0.9, features.flip(1))
    assert torch.equal(first.delta, before[0])
    assert torch.equal(first.losses, before[1])


# ---- what no graph can hold


class ReadsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 + 0 * grad.sum().item())


WAITS = {
    "item": lambda x: x * x.sum().item(),
    "float": lambda x: x * float(x[0, 0].detach()),
    "bool": lambda x: x if x.sum() > 0 else -x,
    "nonzero": lambda x: x[:, x[0].nonzero()[:, 0]],
    "mask": lambda x: x[x > 0],
    "write by mask": lambda x: x.clone().index_put_((x > 9,), torch.zeros(())),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x * len(x.round().unique()),
    "equal": lambda x: x * torch.equal(x, x),
    "cholesky": lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(3)),
    "solve": lambda x: torch.linalg.solve(x @ x.mT + torch.eye(3), x),
    "backward": ReadsInBackward.apply,
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_for_the_device_is_noted_and_done(name):
    def run():
        x = torch.linspace(0.1, 1, 12).view(3, 4).requires_grad_()
        y = WAITS[name](x)
        return y, *torch.autograd.grad(y.sum(), x)

    expected, watch = run(), Watch()
    with watch:
        seen = run()
    assert watch.found
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))


def test_what_does_not_wait_is_not_noted():
    x, index = torch.linspace(0.1, 1, 12).view(3, 4).requires_grad_(), torch.tensor([2, 0])
    watch = Watch()
    with watch:
        y = nn.functional.normalize(x[index] @ x.mT) + torch.where(x > 0.5, x, 0).sum()
        y = y.index_put((index[1:],), torch.ones(3)) * x[:2, :3].clone().index_add_(0, index[1:], torch.ones(1, 3))
        torch.autograd.grad(y.norm() * torch.rand(()) / 3, x)
    assert watch.found == ""


@pytest.mark.parametrize(
    ("step", "waits"),
    [
        (lambda x: x.cpu(), True),
        (lambda x: x + torch.ones(3).to(x.device), True),
        (lambda x: x.copy_(torch.ones(3)), True),
        (lambda x: torch.zeros(()).to(x.device), True),
        (lambda x: x[torch.tensor([0, 2])], True),
        (lambda x: x * torch.tensor(0.5), False),
        (lambda x: x.to(torch.float64).copy_(x), False),
    ],
)
def test_copies_between_host_and_device_are_noted(step, waits):
    watch = Watch()
    with FakeTensorMode():
        x = torch.ones(3, device="cuda")
        with watch:
            step(x)
    assert bool(watch.found) == waits


def test_a_step_that_is_watched_does_not_disturb_other_threads(cuda_graphs):
    begun, done = threading.Event(), threading.Event()

    def other():
        begun.wait()
        torch.ones(1).item()
        done.set()

    def step():
        begun.set()
        assert done.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    launch = Launcher("cudagraph", CPU)
    for _ in range(4):
        launch("step", step)
    thread.join()
    assert len(cuda_graphs.named("replay")) == 1


def reads_back(x):
    return TINY(x) * (1 + 0 * x.mean().item())


TINY = TinyNet().requires_grad_(False)
SHORT = {"steps": 6, "warmup": 2, "inner_steps": 2, "device": "cpu", "objective": "class_center"}


def test_auto_goes_on_without_a_graph_where_a_network_waits(cuda_graphs, faces, caplog):
    ticks = []
    cloak = fit(faces, reads_back, progress=lambda *now: ticks.append(now), **SHORT)
    (record,) = caplog.records
    assert "'cudagraph' cannot run this network in a graph: aten._local_scalar_dense.default may wait" in record.message
    assert "learning goes on with engine 'eager'" in record.message
    assert cloak.info["engine"] == "eager"
    assert ticks == [(step, 6) for step in range(1, 7)]
    assert torch.equal(cloak.delta, fit(faces, reads_back, engine="eager", **SHORT).delta)
    assert cuda_graphs.named("capture") == []
    assert fit(faces, TINY, **SHORT).info["engine"] == "cudagraph"


def test_a_wish_for_a_graph_that_cannot_be_is_refused_at_the_first_step(cuda_graphs, faces):
    ticks = []
    with pytest.raises(EngineError, match="engine 'cudagraph' cannot run this network .*; use engine='eager'"):
        fit(faces, reads_back, engine="cudagraph", progress=lambda *now: ticks.append(now), **SHORT)
    assert ticks == []


@pytest.mark.promise("P14")
def test_auto_goes_on_from_the_same_step_where_a_capture_fails(cuda_graphs, faces, caplog):
    cuda_graphs.breaks = RuntimeError("operation not permitted when stream is capturing\nmore")
    ticks = []
    cloak = fit(faces, TINY, progress=lambda *now: ticks.append(now), **SHORT)
    assert [record.message for record in caplog.records] == [
        "engine 'cudagraph' cannot run this network in a graph: operation not permitted when stream is capturing; "
        "learning goes on with engine 'eager', slower"
    ]
    assert cuda_graphs.current == "default"
    assert len(cuda_graphs.named("capture")) == 1
    assert ticks == [(step, 6) for step in range(1, 7)]
    assert cloak.info["engine"] == "eager"
    assert torch.equal(cloak.delta, fit(faces, TINY, engine="eager", **SHORT).delta)
    with pytest.raises(EngineError, match="not permitted when stream is capturing; use engine='eager'"):
        fit(faces, TINY, engine="cudagraph", **SHORT)


@pytest.mark.parametrize("fails", [False, True])
def test_on_cuda_a_compiled_network_is_captured_too_where_it_can_be(cuda_graphs, caplog, fails):
    if fails:
        cuda_graphs.breaks = RuntimeError("no")
    launch, x = Launcher("compile", CUDA), torch.zeros(1)
    for _ in range(7):
        launch("step", lambda: x.add_(1))
    assert x.item() == 7
    assert (len(cuda_graphs.named("capture")), len(cuda_graphs.named("replay"))) == ((1, 0) if fails else (1, 4))
    assert ("learning goes on with engine 'compile'" in caplog.text) == fails
    assert launch.engine == "compile"


@needs_compiler
def test_a_compiled_network_can_be_watched():
    double = network("compile", lambda x: x * 2)
    for watch in (Watch(), Watch()):
        with watch:
            x = torch.ones(3, requires_grad=True)
            (grad,) = torch.autograd.grad(double(x).sum(), x)
        assert (watch.found, grad.tolist()) == ("", [2, 2, 2])
