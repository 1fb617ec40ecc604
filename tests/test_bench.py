"""The measurements measure what they say: network sizes, the published loop, the peers, the clock, rows and figures."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from bench.harness import machine, nets
from bench.harness.fake_cuda import CUDA, fake_cuda
from bench.harness.rows import Rows, laid_out, read
from bench.speed import cluster, estimate, figures, ladder, peers, published, tailoring
from fastcloak import fit
from fastcloak.models import prepare
from tests.conftest import TinyNet

EPS = 8 / 255
RESULTS = Path(__file__).parent.parent / "bench/results"


# Parameters: arcface_torch's r50 has 43.59 M. MobileFaceNet has 0.99 M (paper) with 128 numbers, 512 x 384 weights and
# 2 x 384 of the last normalisation fewer. Operations: 6.31 G and 0.22 G multiply-adds (paper: "221 million MAdds").
@pytest.mark.parametrize(
    ("network", "parameters", "multiply_adds"),
    [(nets.MobileFaceNet, 1_200_512, 221e6), (nets.IResNet, 43_590_848, 6.31e9)],
)
def test_networks_have_the_published_size(network, parameters, multiply_adds):
    with torch.device("meta"):
        net = network().eval()
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert nets.flops(net) / 2 == pytest.approx(multiply_adds, rel=2e-3)


def test_random_weights_keep_photos_apart_and_let_gradients_through():
    net, x = nets.mobilefacenet(), nets.faces(3).requires_grad_()
    z = normalize(nets.OnFaces(net)(x))
    assert 0 < (z @ z.T)[~torch.eye(3, dtype=torch.bool)].min() < 0.9
    z[:, 0].sum().backward()
    assert (x.grad.isfinite() & (x.grad != 0)).float().mean() > 0.99
    assert torch.allclose(normalize(prepare(nets.surrogate(net))(x.detach())), z, atol=1e-5)


@pytest.mark.parametrize("objective", published.OBJECTIVES)
def test_published_loop_and_opom_give_the_same_mask(tiny_net, faces, objective):
    if not objective.startswith("fi_uap"):
        pytest.importorskip("cvxpy", reason="the published hulls are cvxpy's; it is in the extra bench")
    options = {"objective": objective, "steps": 3, "warmup": 1}
    delta = published.published_fit(tiny_net.requires_grad_(True), faces, **options)
    cloak = fit(faces, tiny_net, method="opom", **options)
    assert delta.abs().max() <= EPS + 1e-7
    # cvxpy's default solver stops at 1e-5 or so: signs of gradients near zero differ.
    assert (cloak.delta - delta).abs().gt(1e-6).float().mean() < (0.002 if objective.startswith("fi_uap") else 0.01)


def test_published_loop_pays_what_the_release_pays(tiny_net, faces):
    clean = published.clean_features(tiny_net.requires_grad_(True), faces)
    with peers.count_passes(tiny_net) as passes:
        noisy = faces + published.start_noise(len(faces))
        _, _, distances = published.published_step(tiny_net, faces, clean, noisy, "fi_uap")
    assert (passes.forwards, passes.gradients, len(distances)) == (6, 6, 6)
    assert all(p.grad is not None and p.grad.any() for p in tiny_net.parameters())
    clean.sum().backward()  # the graph of the clean photos is still there


@pytest.mark.parametrize("name", peers.ATTACKS)
def test_peers_stay_within_eps_raise_the_loss_and_are_counted(tiny_net, faces, name):
    pytest.importorskip(name, reason=f"{name} is in the extra bench")
    torch.manual_seed(0)
    noisy = (faces + torch.empty_like(faces).uniform_(-EPS, EPS)).clamp(0, 1)
    attacked = peers.ATTACKS[name](tiny_net, faces, peers.clean_units(tiny_net, faces), steps=4)
    assert (attacked.pictures - faces).abs().max() <= EPS + 1e-6
    assert ((attacked.pictures >= 0) & (attacked.pictures <= 1)).all()
    # How many gradients ART takes depends on the data: photos that the mask moves far enough already are skipped.
    least = 0 if name == "art" else peers.own_feature_distance(tiny_net, faces, noisy)
    assert peers.own_feature_distance(tiny_net, faces, attacked.pictures) > least
    assert attacked.passes.gradients in ({4 * n for n in range(1, 7)} if name == "art" else {24})


def test_every_rung_of_the_ladder_reaches_what_the_published_loop_reaches():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 14, 14), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(256, 16))
    rows = list(ladder.measure("tiny", net.eval(), photos=3, repeats=1, bfloat16=True))
    names = ["published", "cached", "frozen", "folded", "prepared", "fit", "bfloat16", "people"]
    assert [row["rung"] for row in rows] == names
    assert all(row["agrees"] for row in rows)
    assert all(row["signs_differ"] < 0.005 for row in rows[1:] if row["rung"] != "bfloat16")
    assert rows[-1]["photos_per_pass"] == 6
    (late, *_) = ladder.measure("tiny", net, photos=3, left=lambda: 1.0)
    assert late["note"] == "TimeoutError: skipped: 1 s left"


def test_a_pass_of_photos_is_timed_next_to_the_same_photos_one_by_one(monkeypatch):
    monkeypatch.setitem(nets.NETS, "tiny", TinyNet)
    (alone,) = tailoring.point(["tiny"], 1, gradients=1, repeats=1)
    apart, together = tailoring.point(["tiny", "tiny"], 3, gradients=2, repeats=2)
    assert (alone["how"], apart["how"], together["how"]) == ("pass", "one by one", "pass")
    assert (alone["models"], together["photos"], together["gradients"]) == ("tiny", 3, 2)
    assert (alone["times_one_by_one"], apart["times_one_by_one"]) == (1, 1)
    ratio = apart["seconds_per_photo"] / together["seconds_per_photo"]
    assert together["times_one_by_one"] == pytest.approx(ratio, rel=1)
    assert all(row["peak_mb"] >= 0 < row["setup_seconds"] for row in (alone, apart, together))


def test_timings_worked_by_hand_and_in_turns(tiny_net, faces):
    timing = machine.Timing((4.0, 1.0, 3.0, 2.0, 5.0, 6.0))
    assert timing.columns("s", 2) == {"s": 1.75, "low": 1.0, "high": 2.5, "repeats": 6}
    assert timing.over(machine.Timing((2.0, 0.5, 1.5, 1.0, 2.5, 3.0))) == 2.0
    calls = []
    machine.interleaved({name: functools.partial(calls.append, name) for name in "ab"}, repeats=3)
    assert calls == ["a", "b"] * 4
    clock = machine.StepClock()
    fit(faces, tiny_net, steps=4, inner_steps=1, progress=clock)
    assert len(clock.timing().seconds) == 3
    assert all(1e8 < roof < 1e15 for roof in (machine.peak_flops(), machine.copy_bandwidth()))


def test_rows_are_whole_after_each_and_say_what_they_were_measured_on(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    rows = Rows(path)
    rows.add({"what": "a", "seconds": 1 / 3, "threads": 7})
    Rows(path, append=True).add({"what": "b", "ranks": [1, 2]})
    first, second = read(path)
    assert list(first)[:3] == ["what", "seconds", "ranks"]
    assert [first[name] for name in ("seconds", "threads", "ranks")] == ["0.333333", "7", ""]
    assert (second["ranks"], second["torch"]) == ("[1, 2]", torch.__version__.split("+")[0])
    assert set(second) >= {"cpu", "cores", "python", "numpy", "triton", "fastcloak", "commit", "dirty", "date"}
    assert laid_out([["row", "n"], ["a", "10"]]) == "row   n\na    10"


def test_the_committed_rows_of_speed_are_drawn(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="figures need the extra demo")
    names = ["ladder_cpu_mobilefacenet", "scale_cpu", "scaling_cpu_mobilefacenet"]
    for name in (*names, "scale_memory"):
        (tmp_path / f"{name}.csv").write_bytes((RESULTS / f"{name}.csv").read_bytes())
    monkeypatch.setattr(sys, "argv", ["figures", "--results", str(tmp_path)])
    figures.main()
    assert sorted(path.stem for path in tmp_path.glob("*.svg")) == names
    assert "| mobilefacenet, fi_uap, 1 | published | 157 | 1 |" in capsys.readouterr().out


def test_steady_work_is_counted_from_when_every_worker_has_begun():
    # Two workers, four people a batch: batches at 10, 12, 20, 22 s, and the last one, of two, at 27.
    arrivals = cluster.Arrivals(4, seconds=[10, 12, 20, 22, 27], cpu=[8, 10, 19, 21, 25], people=[4, 4, 4, 4, 2])
    arrivals.fit_seconds, arrivals.busy = [6, 6, 7, 6, 3], [10, 12, 24, 26, 30]
    steady = arrivals.steady(2)
    assert steady.pop("others") == (18 - 15) / (15 * len(os.sched_getaffinity(0)))
    assert list(steady.values()) == [3600 * 10 / 15, 2 * 15 / 10, 1.6, 1.5]
    with pytest.raises(ValueError, match="two batches or more, got 5 for 5 workers"):
        arrivals.steady(5)


def test_memory_grows_by_the_slope_after_the_first_fifth():
    rows = [{"people": n, "mb": n / 2**20 * 4096 if n > 200 else 0.0} for n in range(100, 1001, 100)]
    assert figures.slope(rows, "mb") == pytest.approx(4096)


def test_processes_are_this_one_and_those_below_with_their_memory():
    code = "import sys; kept = bytearray(b'x') * 2**26; print('ready', flush=True); sys.stdin.readline()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        child.stdout.readline()
        found, size = {process.pid for process in cluster.processes()}, cluster.memory_of(child.pid)
        child.communicate("\n")
    assert {os.getpid(), child.pid} <= found
    assert os.getppid() not in found
    assert 2**26 < size < 2**26 + 2**25
    assert cluster.memory_of(child.pid) == 0


def test_the_estimate_takes_the_slowest_of_bytes_operations_and_launch():
    with fake_cuda():
        a, b = torch.empty(4096, 8192, device=CUDA), torch.empty(8192, 2048, device=CUDA)
        with estimate.Work() as product:
            a @ b
        with estimate.Work() as total:
            a + a
        with estimate.Work() as little:
            a[0, :3] + 1
    assert product.flops == 2 * 4096 * 8192 * 2048
    assert product.bytes == 4 * (4096 * 8192 + 8192 * 2048 + 4096 * 2048)
    assert product.seconds == product.flops / estimate.PEAK
    assert dict(product.time_by_limit) == {"arithmetic": product.seconds}
    assert total.bytes == 2 * a.numel() * 4  # one tensor twice is read once
    assert dict(total.time_by_limit) == {"bandwidth": total.bytes / estimate.BANDWIDTH}
    assert dict(little.time_by_limit) == {"launches": estimate.LAUNCH}
    assert product.at_roof == product.flops / estimate.ROOF_PEAK
