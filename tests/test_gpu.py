"""What a GPU has to show: engines against eager, no waiting for the device, flat memory, many people in a budget.

Without a GPU the same tests run on the CPU, with PyTorch's operations in place of the kernels and eager in place of the
other engines, and with float32 products rounded as a GPU rounds them: what fails by itself is found there.
"""

import logging
import subprocess
import sys
from contextlib import contextmanager, nullcontext
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
from fastcloak.system.device import has_fast_bfloat16, without_tf32
from tests.conftest import TinyNet, smooth_faces
from tests.tf32 import Tf32

ON_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device: bench/gpu_check.sh runs these tests")
# Torch warns once, whatever we do, that the mode is a prototype, and that inductor could use TF32.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
TRITON, GRAPH, COMPILE = ("triton", "cudagraph", "compile") if ON_GPU else ("reference", "eager", "eager")
# To compare pixels: without views, whose gradients CUDA adds up in an order of its own.
fit, fit_many = partial(fastcloak.fit, preset="plain"), partial(fastcloak.fit_many, preset="plain")
EPS = 8 / 255
BACKENDS = ["reference", TRITON] if ON_GPU else ["reference"]
ENGINES = [GRAPH, "eager"] if ON_GPU else ["eager"]
GRAPHS = [(b, o) for b in BACKENDS for o in OBJECTIVES if not ON_GPU or (b, o) != ("reference", "convex_hull")]
METHODS = [{"method": "ga", "batch_size": 2, "inner_steps": 3}, {"method": "opom"}]
SHORT = {"steps": 4, "warmup": 2, "dtype": "float32"}

# Algorithms may differ between a warm-up, a capture and a batch size, and a gradient that rounds across zero turns the
# sign of its pixel, which later steps build on. Few steps, hence few pixels.
DIFFERING = 0.02


@pytest.fixture(autouse=True)
def products_as_on_a_gpu():
    with nullcontext() if ON_GPU else Tf32():
        yield


def synchronise():
    if ON_GPU:
        torch.cuda.synchronize()


def random_state():
    """Of the device's generator."""
    return torch.cuda.get_rng_state() if ON_GPU else torch.get_rng_state()


def differing(a, b):
    return (a.delta != b.delta).float().mean().item()


def assert_alike(cloak, other, share=DIFFERING):
    assert cloak.delta.abs().max().item() <= EPS
    assert differing(cloak, other) <= share
    assert cloak.info["losses"] == pytest.approx(other.info["losses"], rel=0.02, abs=1e-5)


@contextmanager
def errors_where_the_host_waits():
    """Torch raises where it waits for the device (it knows of most places, not of all)."""
    if not ON_GPU:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def a_loop(engine, backend, persons=2, photos=4, **options):
    """A Loop and what it fits; two objectives in turn, so two captures."""
    surrogate = prepare(load_model(TinyNet()), device=DEVICE, dtype=torch.float32)
    config = FitConfig(**{"steps": 4, "warmup": 2, "inner_steps": 3, **options})
    faces = torch.stack([smooth_faces(photos, seed=i) for i in range(persons)]).to(DEVICE)
    features = unit_features(surrogate, faces.flatten(0, 1)).view(persons, photos, -1)
    ops = resolve_backend(backend, DEVICE)[1]
    return Loop(surrogate, config, ops, engine, persons, photos), faces, features


def run_of(engine, backend):
    return {"engine": engine, "backend": backend}


# two ways to run, options, share of pixels that may differ: inductor rounds in places of its own
SAME = [
    *((run_of(GRAPH, b), run_of("eager", b), {"objective": o, **m}, 0.02) for b, o in GRAPHS for m in METHODS),
    *((run_of("eager", TRITON), run_of("eager", "reference"), {"objective": o, **m}, 0.02)
      for o in OBJECTIVES for m in METHODS),
    *((run_of(COMPILE, b), run_of("eager", b), METHODS[0], 0.05) for b in BACKENDS),
    *((run_of(GRAPH, TRITON), run_of("eager", "reference"), {"decay": decay, "method": method}, 0.05)
      for decay, method in ((0.9, "ga"), (1.0, "opom"))),
    *((run_of(GRAPH, TRITON), run_of("eager", TRITON), {**booster, "inner_steps": 2}, 0.05)
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
    options = {"steps": 6, "inner_steps": 2, "warmup": 0, "dtype": "float32", "engine": GRAPH}
    before = random_state()
    dropped = fit(faces, tiny_net, dropout=0.3, **options)
    assert torch.equal(random_state(), before)
    assert differing(dropped, fit(faces, tiny_net, dropout=0.3, **options)) <= DIFFERING
    assert differing(dropped, fit(faces, tiny_net, **options)) > 0.1


def test_a_real_layout_in_bfloat16(faces):
    net = nets.mobilefacenet()
    options = {"steps": 3, "warmup": 1, "inner_steps": 3 if ON_GPU else 1, "dtype": "bfloat16"}
    graph, eager = (fit(faces, net, **run_of(engine, TRITON), **options) for engine in (GRAPH, "eager"))
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
    assert (cloak.info["backend"], cloak.info["engine"]) == (TRITON, GRAPH)
    if ON_GPU:
        assert cloak.info["device"] == torch.cuda.get_device_name()
        assert has_fast_bfloat16(DEVICE) == (torch.cuda.get_device_capability() >= (8, 0))
        assert cloak.info["dtype"] == ("bfloat16" if has_fast_bfloat16(DEVICE) else "float32")
    assert cloak.info["folded"]  # as without TF32
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
    net = TinyNet().to(DEVICE)
    expected = fit(faces, TinyNet(), steps=3, dtype="float32")
    assert_alike(fit(faces.to(DEVICE), net, steps=3, dtype="float32"), expected)
    assert next(net.parameters()).device.type == DEVICE.type
    with torch.cuda.stream(torch.cuda.Stream()) if ON_GPU else nullcontext():
        assert_alike(fit(faces, TinyNet(), steps=3, dtype="float32"), expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("backend", "objective"), GRAPHS)
def test_no_step_waits_for_the_device_and_no_pass_leaves_anything(monkeypatch, engine, backend, objective):
    fitted, faces, features = a_loop(engine, backend, objective=objective, decay=0.9)
    ticks = []
    first = fitted.learn(faces, features)
    fitted.learn(faces.flip(0, 1) * 0.9, features.flip(0))
    # affine_hull takes its basis from an SVD, before the first step, which waits.
    hull = build_hull(features, objective)
    monkeypatch.setattr("fastcloak.fitting.objective.build_hull", lambda *_: hull)
    with errors_where_the_host_waits():
        second = fitted.learn(faces, features, lambda: ticks.append(1))
    assert len(ticks) == fitted.config.steps
    assert (first.delta != second.delta).float().mean() <= DIFFERING
    assert torch.allclose(first.losses, second.losses, rtol=0.02, atol=1e-5)


@needs_gpu
def test_the_mode_that_these_tests_rely_on_finds_a_wait():
    with errors_where_the_host_waits(), pytest.raises(RuntimeError, match="(?i)synchroniz"):
        torch.ones(1, device=DEVICE).item()


def taken():
    synchronise()
    return torch.cuda.memory_allocated()


@pytest.mark.promise("P13")
@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_is_flat_over_a_thousand_steps(backend):
    steps = 1000 if ON_GPU else 20
    fitted, faces, features = a_loop(GRAPH, backend, objective="class_center", inner_steps=2, steps=steps)
    seen = []
    learnt = fitted.learn(faces, features, lambda: seen.append(taken()))
    assert len(seen) == steps
    assert len(set(seen[10:])) == 1
    assert learnt.delta.isfinite().all()


@pytest.mark.promise("P13")
def test_memory_is_flat_over_passes(tiny_net, faces):
    def after_a_fit():
        fit(faces, tiny_net, steps=3, warmup=1, inner_steps=2)
        return taken()

    # Libraries keep a workspace for each of PyTorch's streams, which are taken in turns out of 32.
    before = [after_a_fit() for _ in range(33 if ON_GPU else 1)][-1]
    assert [after_a_fit() for _ in range(5)] == [before] * 5


@pytest.mark.promise("P7")
@without_tf32()  # which makes large differences of small ones: half of the pixels differ at another batch size
def test_many_people_in_passes_get_the_cloaks_of_people_alone():
    net = nets.mobilefacenet()
    count, budget = (64, 500 * 2**20) if ON_GPU else (3, 100 * 2**20)
    people = {str(i): smooth_faces(4, seed=i) for i in range(count)}
    options = {"steps": 3, "warmup": 1, "inner_steps": 2, "dtype": "float32", "backend": TRITON}
    sizes = []
    fit(people["0"], net, **options)  # contexts and workspaces of the libraries
    before = taken()
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    shared = fit_many(
        people, net, memory_budget=budget, progress=lambda done, _: sizes.append(done - sum(sizes)), **options
    )
    peak = torch.cuda.max_memory_allocated() - before
    weights = sum(p.numel() * 4 for p in net.parameters())
    assert len(shared) == count
    assert 1 < max(sizes) < count, "passes of several people, not of all"
    # Besides the pass there is the network, in two copies while it is prepared.
    assert peak <= budget + 3 * weights, f"{peak / 2**20:.0f} MiB of {budget / 2**20:.0f}, passes of {max(sizes)}"
    for name in ("0", str(count // 2), str(count - 1)):
        alone = fit(people[name], net, **options)
        assert differing(shared[name], alone) <= 0.1  # another batch size may choose another algorithm
        assert shared[name].info["losses"][-1] == pytest.approx(alone.info["losses"][-1], rel=0.1)


def test_the_default_takes_several_people_per_pass(tiny_net):
    people = {str(i): smooth_faces(3, seed=i) for i in range(8)}
    ticks = []
    budget = None if ON_GPU else 2**30
    fit_many(people, tiny_net, steps=2, warmup=1, progress=lambda done, total: ticks.append(done), memory_budget=budget)
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
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_gradients_stop_with_the_step(engine, backend):
    options = {"method": "opom", "objective": "class_center", "steps": 8, "alpha": 2 / 255, "random_start": False}
    faces = 0.4 + 0.1 * smooth_faces(4)  # at most 0.5
    # A callable is used unchanged, on the device of what it gets.
    nets_on = {device: TinyNet().to(device).requires_grad_(False) for device in ("cpu", DEVICE.type)}
    with pytest.raises(FloatingPointError, match=r"at step [3-8] of 8"):
        fit(
            faces,
            lambda x: nets_on[x.device.type](Breaks.apply(x)),
            **run_of(engine, backend),
            device=DEVICE,
            **options,
        )


@needs_gpu
def test_auto_goes_on_without_a_graph_where_a_network_waits_and_the_next_fit_has_one_again():
    # In a process of its own: in torch 2.11 a capture that failed leaves the allocator unable to capture ever again.
    code = """
import logging, torch
from fastcloak import fit
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
        asked = torch.get_float32_matmul_precision, torch.is_grad_enabled
        if ON_GPU:
            asked += torch.cuda.get_sync_debug_mode, torch.cuda.current_stream, torch.cuda.current_device
        flags = ("benchmark", "deterministic", "enabled", "allow_tf32")
        return [getattr(torch.backends.cudnn, flag) for flag in flags] + [ask() for ask in asked]

    before, host, device = state(), torch.get_rng_state(), random_state()
    for engine in ENGINES:
        fit(faces, tiny_net, steps=2, warmup=1, engine=engine)
        with pytest.raises(FloatingPointError, match="finite"):
            fit(faces, lambda x: x.mean((2, 3)) * torch.nan, steps=2, engine=engine, device=DEVICE)
    assert state() == before
    assert torch.equal(torch.get_rng_state(), host)
    assert torch.equal(random_state(), device)
    assert next(tiny_net.parameters()).device.type == "cpu"


# The reference finds convex hulls with LAPACK's operations, which no graph may hold.


def test_convex_hulls_of_the_reference_do_without_a_graph(tiny_net, faces, caplog):
    with caplog.at_level(logging.WARNING, logger="fastcloak"):
        cloak = fit(faces, tiny_net, backend="reference", **SHORT)
        again = fit(faces, tiny_net, **run_of("eager", "reference"), **SHORT)
    assert caplog.records == []
    assert cloak.info["engine"] == "eager"
    assert_alike(cloak, again)


@needs_gpu
def test_only_people_of_many_photos_do_without_kernels_and_a_graph(tiny_net):
    people = {str(i): smooth_faces(count, seed=i) for i, count in enumerate((3, 65, 4))}
    cloaks = fit_many(people, tiny_net, steps=4, warmup=1, inner_steps=2)
    ran = [(cloak.info["backend"], cloak.info["engine"]) for cloak in cloaks.values()]
    assert ran == [("triton", "cudagraph"), ("reference", "eager"), ("triton", "cudagraph")]


@needs_gpu
def test_a_graph_of_the_references_convex_hull_is_refused(tiny_net, faces):
    with pytest.raises(ValueError, match="engine 'cudagraph' cannot hold convex hulls of the reference"):
        fit(faces, tiny_net, **run_of("cudagraph", "reference"), **SHORT)
