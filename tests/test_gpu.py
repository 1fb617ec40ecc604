"""What only a GPU can show: engines against eager, no waiting for the device, flat memory, many people in a budget."""

import logging
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

import fastcloak
from bench.harness import nets
from fastcloak.fitting.loop import Loop
from fastcloak.fitting.options import AUGMENTATIONS, OBJECTIVES, FitConfig
from fastcloak.models import load_model, prepare, unit_features
from fastcloak.ops.backend import resolve_backend
from fastcloak.ops.hull import build_hull
from fastcloak.system.device import has_fast_bfloat16
from tests.conftest import TinyNet, smooth_faces

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device: bench/gpu_check.sh runs these tests", allow_module_level=True)

# Torch warns once, whatever we do, that the mode is a prototype, and that inductor could use TF32.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]

CUDA = torch.device("cuda")
# To compare pixels: without views, whose gradients CUDA adds up in an order of its own.
fit, fit_many = partial(fastcloak.fit, preset="plain"), partial(fastcloak.fit_many, preset="plain")
EPS = 8 / 255
BACKENDS = ["reference", "triton"]
# The reference's convex hull in a graph comes last: in torch 2.11 a capture that fails is the process's last one.
GRAPHS = [(b, o) for b in BACKENDS for o in OBJECTIVES if (b, o) != ("reference", "convex_hull")]
METHODS = [{"method": "ga", "batch_size": 2, "inner_steps": 3}, {"method": "opom"}]
SHORT = {"steps": 4, "warmup": 2, "dtype": "float32"}

# Algorithms may differ between a warm-up, a capture and a batch size, and a gradient that rounds across zero turns the
# sign of its pixel, which later steps build on. Few steps, hence few pixels.
DIFFERING = 0.02


def differing(a, b):
    return (a.delta != b.delta).float().mean().item()


def assert_alike(cloak, other, share=DIFFERING):
    assert cloak.delta.abs().max().item() <= EPS
    assert differing(cloak, other) <= share
    assert cloak.info["losses"] == pytest.approx(other.info["losses"], rel=0.02, abs=1e-5)


@contextmanager
def errors_where_the_host_waits():
    """Torch raises where it waits for the device (it knows of most places, not of all)."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def a_loop(engine, backend, persons=2, photos=4, **options):
    """A Loop and what it fits; two objectives in turn, so two captures."""
    surrogate = prepare(load_model(TinyNet()), device=CUDA, dtype=torch.float32)
    config = FitConfig(**{"steps": 4, "warmup": 2, "inner_steps": 3, **options})
    faces = torch.stack([smooth_faces(photos, seed=i) for i in range(persons)]).to(CUDA)
    features = unit_features(surrogate, faces.flatten(0, 1)).view(persons, photos, -1)
    ops = resolve_backend(backend, CUDA)[1]
    return Loop(surrogate, config, ops, engine, persons, photos), faces, features


def run_of(engine, backend):
    return {"engine": engine, "backend": backend}


# two ways to run, options, share of pixels that may differ: inductor rounds in places of its own
SAME = [
    *((run_of("cudagraph", b), run_of("eager", b), {"objective": o, **m}, 0.02) for b, o in GRAPHS for m in METHODS),
    *((run_of("eager", "triton"), run_of("eager", "reference"), {"objective": o, **m}, 0.02)
      for o in OBJECTIVES for m in METHODS),
    *((run_of("compile", b), run_of("eager", b), METHODS[0], 0.05) for b in BACKENDS),
    *((run_of("cudagraph", "triton"), run_of("eager", "reference"), {"decay": decay, "method": method}, 0.05)
      for decay, method in ((0.9, "ga"), (1.0, "opom"))),
    *((run_of("cudagraph", "triton"), run_of("eager", "triton"), {**booster, "inner_steps": 2}, 0.05)
      for booster in ({"augment": AUGMENTATIONS}, {"ensemble": "gradient"})),
]  # fmt: skip


@pytest.mark.promise("P14")
@pytest.mark.parametrize(("one", "other", "options", "share"), SAME)
def test_backends_and_engines_fit_the_same_cloak(tiny_net, faces, one, other, options, share):
    networks = [load_model(tiny_net, name="a"), load_model(TinyNet(), name="b")][: 1 + ("ensemble" in options)]
    cloaks = [fit(faces, networks, **run, **SHORT, **options) for run in (one, other)]
    for cloak, run in zip(cloaks, (one, other), strict=True):
        assert {name: cloak.info[name] for name in run} == run
    assert_alike(*cloaks, share)
    assert cloaks[0].info["hull_gap"] <= 1e-6


def test_dropout_in_a_graph_is_fresh_in_every_replay(tiny_net, faces):
    options = {"steps": 4, "inner_steps": 2, "warmup": 0, "dtype": "float32", "engine": "cudagraph"}
    before = torch.cuda.get_rng_state()
    dropped = fit(faces, tiny_net, dropout=0.3, **options)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert differing(dropped, fit(faces, tiny_net, dropout=0.3, **options)) <= DIFFERING
    assert differing(dropped, fit(faces, tiny_net, **options)) > 0.1


def test_a_real_layout_in_bfloat16(faces):
    net = nets.mobilefacenet()
    options = {"steps": 3, "warmup": 1, "inner_steps": 3, "dtype": "bfloat16"}
    graph, eager = (fit(faces, net, **run_of(engine, "triton"), **options) for engine in ("cudagraph", "eager"))
    assert graph.info["dtype"] == "bfloat16"
    assert_alike(graph, eager)
    # bfloat16 has three digits: compared with float32 by what is reached, not by pixels.
    full = fit(faces, net, **run_of("eager", "reference"), **options | {"dtype": "float32"})
    assert graph.info["losses"][-1] == pytest.approx(full.info["losses"][-1], rel=0.15)


def test_defaults_on_a_gpu_are_the_fast_ones_and_raise_the_loss(tiny_net, faces, caplog):
    ticks = []
    with caplog.at_level(logging.WARNING, logger="fastcloak"):
        cloak = fit(faces, tiny_net, progress=lambda done, total: ticks.append((done, total)))  # plain suits TinyNet
    assert caplog.records == []
    assert (cloak.info["backend"], cloak.info["engine"]) == ("triton", "cudagraph")
    assert cloak.info["device"] == torch.cuda.get_device_name()
    fast = torch.cuda.get_device_capability() >= (8, 0)
    assert has_fast_bfloat16(CUDA) == fast
    assert cloak.info["dtype"] == ("bfloat16" if fast else "float32")
    assert cloak.info["folded"]  # as on a CPU
    assert ticks == [(step, 16) for step in range(1, 17)]
    assert cloak.delta.device.type == "cpu"
    assert cloak.delta.abs().max().item() <= EPS
    assert cloak.info["losses"][-1] > 1.1 * cloak.info["losses"][0]


def test_the_same_seed_gives_the_same_cloak_on_a_gpu(tiny_net, faces):
    first, again = (fit(faces, tiny_net, steps=4, dtype="float32") for _ in range(2))
    assert differing(first, again) <= DIFFERING  # atomics in a library's backward pass may round differently
    cpu = fit(faces, tiny_net, steps=4, dtype="float32", device="cpu")
    assert first.info["losses"] == pytest.approx(cpu.info["losses"], rel=0.05, abs=1e-4)


def test_a_model_and_faces_on_the_gpu_and_another_stream_give_the_same_cloak(faces):
    net = TinyNet().to(CUDA)
    expected = fit(faces, TinyNet(), steps=3, dtype="float32")
    assert_alike(fit(faces.to(CUDA), net, steps=3, dtype="float32"), expected)
    assert next(net.parameters()).device.type == "cuda"
    with torch.cuda.stream(torch.cuda.Stream()):
        assert_alike(fit(faces, TinyNet(), steps=3, dtype="float32"), expected)


@pytest.mark.parametrize("engine", ["cudagraph", "eager"])
@pytest.mark.parametrize(("backend", "objective"), GRAPHS)
def test_no_step_waits_for_the_device_and_no_pass_leaves_anything(monkeypatch, engine, backend, objective):
    fitted, faces, features = a_loop(engine, backend, objective=objective, decay=0.9)
    ticks = []
    first = fitted.learn(faces, features, lambda: None)
    fitted.learn(faces.flip(0, 1) * 0.9, features.flip(0), lambda: None)
    # affine_hull takes its basis from an SVD, before the first step, which waits.
    hull = build_hull(features, objective)
    monkeypatch.setattr("fastcloak.fitting.objective.build_hull", lambda *_: hull)
    with errors_where_the_host_waits():
        second = fitted.learn(faces, features, lambda: ticks.append(1))
    assert len(ticks) == fitted.config.steps
    assert (first.delta != second.delta).float().mean() <= DIFFERING
    assert torch.allclose(first.losses, second.losses, rtol=0.02, atol=1e-5)


def test_the_mode_that_these_tests_rely_on_finds_a_wait():
    with errors_where_the_host_waits(), pytest.raises(RuntimeError, match="(?i)synchroniz"):
        torch.ones(1, device=CUDA).item()


@pytest.mark.promise("P13")
@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_is_flat_over_a_thousand_replays(backend):
    fitted, faces, features = a_loop("cudagraph", backend, objective="class_center", inner_steps=2)
    fitted.learn(faces, features, lambda: None)
    (replay,) = fitted.launchers.values()

    def taken(replays):
        for _ in range(replays):
            replay()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    after_ten = taken(10)
    assert taken(990) == after_ten
    assert fitted.state.delta.isfinite().all()


@pytest.mark.promise("P13")
def test_memory_is_flat_over_passes(tiny_net, faces):
    def taken():
        fit(faces, tiny_net, steps=3, warmup=1, inner_steps=2)
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    taken()
    before = taken()
    assert [taken() for _ in range(5)] == [before] * 5


@pytest.mark.promise("P7")
def test_many_people_in_passes_get_the_cloaks_of_people_alone():
    net = nets.mobilefacenet()
    people = {str(i): smooth_faces(4, seed=i) for i in range(64)}
    options = {"steps": 3, "warmup": 1, "inner_steps": 2, "dtype": "float32", "backend": "triton"}
    sizes = []
    fit(people["0"], net, **options)  # contexts and workspaces of the libraries
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    budget = 500 * 2**20
    shared = fit_many(
        people, net, memory_budget=budget, progress=lambda done, _: sizes.append(done - sum(sizes)), **options
    )
    taken = torch.cuda.max_memory_allocated() - before
    weights = sum(p.numel() * 4 for p in net.parameters())
    assert len(shared) == 64
    assert 1 < max(sizes) < 64, "passes of several people, not of all"
    # Besides the pass there is the network, in two copies while it is prepared.
    assert taken <= budget + 3 * weights, f"{taken / 2**20:.0f} MiB of {budget / 2**20:.0f}, passes of {max(sizes)}"
    for name in ("0", "31", "63"):
        alone = fit(people[name], net, **options)
        assert differing(shared[name], alone) <= 0.1  # another batch size may choose another algorithm
        assert shared[name].info["losses"][-1] == pytest.approx(alone.info["losses"][-1], rel=0.1)


def test_the_default_takes_several_people_per_pass(tiny_net):
    people = {str(i): smooth_faces(3, seed=i) for i in range(8)}
    ticks = []
    fit_many(people, tiny_net, steps=2, warmup=1, progress=lambda done, total: ticks.append(done))
    assert ticks == [8, 16]


class Breaks(torch.autograd.Function):
    """A gradient of NaN wherever a pixel of the picture that a mask has moved is above a threshold."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        # Mid grey faces: only after three steps of 2/255 is a pixel beyond 0.5 + 5/255.
        return torch.where((x > 0.5 + 5 / 255).any(), grad * torch.nan, grad)


@pytest.mark.promise("P8")
@pytest.mark.parametrize("engine", ["cudagraph", "eager"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_gradients_stop_with_the_step(engine, backend):
    options = {"method": "opom", "objective": "class_center", "steps": 8, "alpha": 2 / 255, "random_start": False}
    faces = 0.4 + 0.1 * smooth_faces(4)  # at most 0.5
    # A callable is used unchanged, on the device of what it gets.
    nets_on = {device: TinyNet().to(device).requires_grad_(False) for device in ("cpu", "cuda")}
    with pytest.raises(FloatingPointError, match=r"at step [3-8] of 8"):
        fit(
            faces,
            lambda x: nets_on[x.device.type](Breaks.apply(x)),
            **run_of(engine, backend),
            device="cuda",
            **options,
        )


def test_auto_goes_on_without_a_graph_where_a_network_waits_and_the_next_fit_has_one_again():
    # In a process of its own: in torch 2.11 a capture that failed leaves the allocator unable to capture ever again.
    code = """
import logging, torch
from fastcloak import fit
from fastcloak.system.errors import EngineError
from tests.conftest import TinyNet, smooth_faces
logging.basicConfig(format="%(levelname)s %(message)s")
net, faces = TinyNet(), smooth_faces(4)
on = TinyNet().cuda().requires_grad_(False)
def waits(x):
    return (on if x.is_cuda else net)(x) * (1 + 0 * x.mean().item())
options = {"steps": 2, "warmup": 1, "inner_steps": 2, "device": "cuda"}
print(fit(faces, waits, **options).info["engine"])
try:
    fit(faces, waits, engine="cudagraph", **options)
except EngineError as error:
    print("refused", error)
print(fit(faces, net, **options).info["engine"])
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    first, refused, last = done.stdout.splitlines()
    assert (first, last) == ("eager", "cudagraph")
    assert "WARNING" in done.stderr
    assert "learning goes on with engine 'eager'" in done.stderr
    assert refused.startswith("refused engine 'cudagraph' cannot run this network")


@pytest.mark.promise("P5")
def test_the_callers_world_is_left_unchanged(tiny_net, faces):
    torch.manual_seed(5)

    def state():
        asked = torch.get_float32_matmul_precision, torch.is_grad_enabled, torch.cuda.get_sync_debug_mode
        asked += torch.cuda.current_stream, torch.cuda.current_device
        flags = ("benchmark", "deterministic", "enabled", "allow_tf32")
        return [getattr(torch.backends.cudnn, flag) for flag in flags] + [ask() for ask in asked]

    before, host, device = state(), torch.get_rng_state(), torch.cuda.get_rng_state()
    for engine in ("cudagraph", "eager"):
        fit(faces, tiny_net, steps=2, warmup=1, engine=engine)
        with pytest.raises(FloatingPointError, match="finite"):
            fit(faces, lambda x: x.mean((2, 3)) * torch.nan, steps=2, engine=engine, device="cuda")
    assert state() == before
    assert torch.equal(torch.get_rng_state(), host)
    assert torch.equal(torch.cuda.get_rng_state(), device)
    assert next(tiny_net.parameters()).device.type == "cpu"


# Last: the reference's convex hull, whose Newton steps are LAPACK's.


@pytest.mark.parametrize("engine", ["eager", "cudagraph"])
def test_convex_hulls_of_the_reference_do_not_wait_for_the_device(monkeypatch, engine):
    test_no_step_waits_for_the_device_and_no_pass_leaves_anything(monkeypatch, engine, "reference", "convex_hull")


@pytest.mark.parametrize("options", METHODS)
def test_convex_hulls_of_the_reference_in_a_graph(tiny_net, faces, options):
    runs = run_of("cudagraph", "reference"), run_of("eager", "reference")
    test_backends_and_engines_fit_the_same_cloak(tiny_net, faces, *runs, {"objective": "convex_hull", **options}, 0.02)
