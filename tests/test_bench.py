"""The measurements measure what they say: network sizes, the published loop, the peers' adapters, the clock."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from bench.harness import machine, nets
from bench.speed import cluster as scale
from bench.speed import peers, published
from fastcloak import fit
from fastcloak.models import prepare
from fastcloak.ops.hull import build_hull, convex_weights

EPS = 8 / 255


def thawed(net):
    return net.requires_grad_(True)


# Parameters: arcface_torch's r50 has 43.59 M. MobileFaceNet has 0.99 M (paper) with 128 numbers, 512 x 384 weights and
# 2 x 384 of the last normalisation fewer. Operations: 6.31 G and 0.22 G multiply-adds (paper: "221 million MAdds").
@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"), [("mobilefacenet", 1_200_512, 221e6), ("iresnet50", 43_590_848, 6.31e9)]
)
def test_networks_have_the_published_size(name, parameters, multiply_adds):
    with torch.device("meta"):
        net = (nets.MobileFaceNet if name == "mobilefacenet" else nets.IResNet)().eval()
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert nets.flops(net) / 2 == pytest.approx(multiply_adds, rel=2e-3)


def test_flops_worked_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 7, stride=7, groups=1), nn.Flatten(), nn.Linear(4 * 256, 5))
    assert nets.flops(net) == 2 * (4 * 256 * 3 * 49 + 5 * 4 * 256)
    assert not any(module._forward_hooks for module in net.modules())


def test_random_weights_keep_photos_apart_and_let_gradients_through():
    net, faces = nets.mobilefacenet(), nets.faces(3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), nets.mobilefacenet().parameters(), strict=True))
    assert not net.training
    x = faces.clone().requires_grad_()
    z = normalize(nets.OnFaces(net)(x))
    assert 0 < (z @ z.T)[~torch.eye(3, dtype=torch.bool)].min() < 0.9
    z[:, 0].sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad != 0).float().mean() > 0.99
    ours = prepare(nets.surrogate(net))
    assert ours.folded, ours.notes
    assert torch.allclose(normalize(ours(faces)), z, atol=1e-5)


@pytest.mark.parametrize("objective", published.OBJECTIVES)
def test_published_loop_and_opom_give_the_same_mask(tiny_net, faces, objective):
    if objective not in ("fi_uap", "fi_uap_plus"):
        pytest.importorskip("cvxpy", reason="the published hulls are cvxpy's; it is in the extra bench")
    options = {"objective": objective, "steps": 3, "warmup": 1}
    delta = published.published_fit(thawed(tiny_net), faces, **options)
    cloak = fit(faces, tiny_net, method="opom", **options)
    assert delta.abs().max() <= EPS + 1e-7
    # cvxpy's default solver stops at 1e-5 or so: signs of gradients near zero differ.
    assert (cloak.delta - delta).abs().gt(1e-6).float().mean() < (0.002 if objective.startswith("fi_uap") else 0.01)


def test_published_loop_pays_what_the_release_pays(tiny_net, faces):
    net = thawed(tiny_net)
    clean = published.clean_features(net, faces)
    weights = [p for p in net.parameters() if p.requires_grad]
    with peers.count_passes(net) as passes:
        cloaked, delta, distances = published.published_step(
            net, faces, clean, faces + published.start_noise(len(faces)), "fi_uap"
        )
    assert (passes.forwards, passes.gradients) == (6, 6)
    assert all(p.grad is not None and p.grad.any() for p in weights)
    assert clean.requires_grad
    clean.sum().backward()  # the graph of the clean photos is still there
    assert torch.equal(cloaked, (faces + delta).clamp(0, 1))
    assert len(distances) == 6
    assert all(distance > 0 for distance in distances)


@pytest.mark.parametrize("name", peers.ATTACKS)
def test_peers_stay_within_eps_raise_the_loss_and_are_counted(tiny_net, faces, name):
    pytest.importorskip(name, reason=f"{name} is in the extra bench")
    torch.manual_seed(0)
    noise = torch.empty_like(faces).uniform_(-EPS, EPS)
    attacked = peers.ATTACKS[name](tiny_net, faces, peers.clean_units(tiny_net, faces), steps=4)
    change = attacked.pictures - faces
    assert change.abs().max() <= EPS + 1e-6
    assert attacked.pictures.min() >= 0
    assert attacked.pictures.max() <= 1
    noisy = peers.own_feature_distance(tiny_net, faces, (faces + noise).clamp(0, 1))
    assert peers.own_feature_distance(tiny_net, faces, attacked.pictures) > (noisy if name != "art" else 0)
    assert not tiny_net._forward_hooks
    assert not any(module.training for module in tiny_net.modules())
    if name == "art":  # depends on the data: photos that the mask moves far enough already are skipped
        assert 4 <= attacked.passes.gradients <= 4 * len(faces)
        assert attacked.passes.gradients % 4 == 0
        # One mask for all, but where it is clipped at black and white.
        inside = (attacked.pictures.gt(0) & attacked.pictures.lt(1)).all(0)
        assert torch.allclose(change[:, inside], change[:1, inside].expand(len(faces), -1), atol=1e-6)
    else:
        assert attacked.passes.gradients == attacked.passes.forwards == 4 * len(faces)


@pytest.mark.parametrize("name", ["torchattacks", "foolbox"])
def test_peers_ascend_fi_uap(tiny_net, faces, name):
    pytest.importorskip(name, reason=f"{name} is in the extra bench")
    # One step from the same random start must follow the sign of the gradient of |z' - z|^2.
    torch.manual_seed(3)
    start = (faces + torch.empty_like(faces).uniform_(-EPS, EPS)).clamp(0, 1)
    x = start.clone().requires_grad_()
    clean = peers.clean_units(tiny_net, faces)
    (normalize(tiny_net(x)) - clean).square().sum().backward()
    expected = (faces + (start + x.grad.sign() / 255 - faces).clamp(-EPS, EPS)).clamp(0, 1)
    torch.manual_seed(3)
    got = peers.ATTACKS[name](tiny_net, faces, clean, steps=1).pictures
    assert (got - expected).abs().gt(1e-6).float().mean() < 0.002


@pytest.mark.parametrize(("package", "solve"), [("cvxpy", peers.cvxpy_weights), ("quadprog", peers.quadprog_weights)])
def test_peer_hull_solvers_agree_with_ours(package, solve):
    pytest.importorskip(package, reason=f"{package} is in the extra bench")
    generator = torch.Generator().manual_seed(0)
    points = normalize(torch.randn(1, 64, generator=generator) + torch.randn(7, 64, generator=generator), dim=1)
    features = normalize(points[:5] + 0.1 * torch.randn(5, 64, generator=generator), dim=1)
    hull = build_hull(points[None], "convex_hull")
    ours = convex_weights(hull.gram, ((features - hull.center) @ hull.points[0].T)[None])[0][0]
    assert (solve(features, points).double() - ours).abs().max() < 2e-3


def test_timing_worked_by_hand():
    timing = machine.Timing((4.0, 1.0, 3.0, 2.0, 5.0, 6.0))
    assert timing.median == 3.5
    assert timing.spread == (2.0, 5.0)
    assert timing.over(machine.Timing((2.0, 0.5, 1.5, 1.0, 2.5, 3.0))) == 2.0
    assert machine.Timing((2.0,)).spread == (2.0, 2.0)


def test_interleaved_takes_turns_after_a_warm_up():
    calls = []
    timings = machine.interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert [len(timings[name].seconds) for name in "ab"] == [3, 3]


def test_step_clock_leaves_the_first_step_out(tiny_net, faces):
    clock = machine.StepClock()
    fit(faces, tiny_net, steps=4, inner_steps=1, progress=clock)
    assert len(clock.timing().seconds) == 3
    assert min(clock.timing().seconds) > 0
    with pytest.raises(ValueError, match="2 steps or more"):
        machine.StepClock().timing()


def test_row_context_names_machine_versions_and_commit():
    row = machine.row_context(device="cpu")
    assert row["torch"] == torch.__version__.split("+")[0] or row["torch"].startswith(torch.__version__)
    assert row["cores"] >= 1
    assert row["gpu"] == ""
    assert set(row) >= {"cpu", "threads", "python", "numpy", "triton", "fastcloak", "commit", "dirty", "date"}


def test_roofline_is_a_plausible_number():
    for value in (machine.peak_flops(device="cpu"), machine.copy_bandwidth("cpu")):
        assert math.isfinite(value)
        assert 1e8 < value < 1e15


def test_steady_work_is_counted_from_when_every_worker_has_begun():
    # Two workers, four people a batch: batches at 10, 12, 20, 22 s, and the last one, of two, at 27.
    arrivals = scale.Arrivals(4, seconds=[10, 12, 20, 22, 27], cpu=[8, 10, 19, 21, 25], people=[4, 4, 4, 4, 2])
    arrivals.fit_seconds, arrivals.busy = [6, 6, 7, 6, 3], [10, 12, 24, 26, 30]
    steady = arrivals.steady(2)
    assert steady["steady_people_per_hour"] == 3600 * 10 / 15
    assert steady["seconds_per_person"] == 2 * 15 / 10
    assert steady["fit_seconds_per_person"] == 1.6
    assert steady["cpu_seconds_per_person"] == 1.5
    assert steady["others"] == (18 - 15) / (15 * len(os.sched_getaffinity(0)))
    with pytest.raises(ValueError, match="two batches or more, got 5 for 5 workers"):
        arrivals.steady(5)


def test_arrivals_tell_batches_by_the_names_of_people_and_keep_the_time_of_ended_processes():
    arrivals = scale.Arrivals(2)
    for number in (2, 3, 0, 1):
        if number == 0:
            arrivals._each[-1, 0] = 1000.0
        arrivals({"status": "fitted", "person": f"{number:04d}", "seconds": 0.5}, 4)
    assert arrivals.people == [2, 2]
    assert arrivals.fit_seconds == [1, 1]
    assert arrivals.seconds[0] < arrivals.seconds[1]
    assert 1000 <= arrivals.cpu[1] - arrivals.cpu[0] < 1010
    with pytest.raises(RuntimeError, match="everyone must be fitted"):
        arrivals({"status": "failed", "person": "0004", "seconds": None}, 5)


def test_memory_grows_by_the_slope_after_the_first_fifth():
    rows = [{"people": people, "mb": 300 + people / 2**20 * 4096} for people in range(100, 1001, 100)]
    rows[0]["mb"] = rows[1]["mb"] = 0.0
    assert scale.slope(rows, "mb") == pytest.approx(4096)


def test_processes_are_this_one_and_those_below_with_their_memory():
    code = "import sys; kept = bytearray(b'x') * 2**26; print('ready', flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        child.stdout.readline()
        found = {process.pid for process in scale.processes()}
        size = scale.memory_of(child.pid)
        child.communicate("\n")
    assert {os.getpid(), child.pid} <= found
    assert os.getppid() not in found
    assert 2**26 < size < 2**26 + 2**25
    assert scale.memory_of(child.pid) == 0
