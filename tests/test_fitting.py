import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

import fastcloak
from fastcloak import FitManyError, fit, fit_many
from fastcloak.fitting.options import FitOptions, configure, declared
from fastcloak.protection.outliers import strangers
from tests.conftest import smooth_faces

EPS = 8 / 255
ALPHA = 1 / 255


def differing(a, b):
    """Share of pixels in which two cloaks differ."""
    return (a.delta != b.delta).float().mean().item()


def full_batch_sign_steps(net, faces, steps, eps=EPS, alpha=ALPHA, seed=0):
    """What ga must be with batch_size = N, inner_steps = 1: plain sign steps on fi_uap, written independently."""
    noise = torch.zeros_like(faces).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed)) * eps
    delta = noise.mean(0, keepdim=True)
    with torch.no_grad():
        clean = nn.functional.normalize(net(faces))
    for _ in range(steps):
        x = (faces + delta).clamp(0, 1).requires_grad_()
        loss = (nn.functional.normalize(net(x)) - clean).square().sum(1).mean()
        loss.backward()
        delta = (delta + alpha * x.grad.mean(0).sign()).clamp(-eps, eps)
    return delta[0]


def test_numpy_numbers_are_plain_numbers(tiny_net, faces, tmp_path):
    options = {"steps": np.int64(2), "eps": np.float64(8 / 255), "decay": np.float32(0.5), "seed": np.int32(3)}
    cloak = fit(faces, tiny_net, inner_steps=1, **options)
    cloak.save(tmp_path / "me.safetensors")
    assert fastcloak.load(tmp_path / "me.safetensors").info["seed"] == 3
    assert torch.equal(cloak.delta, fit(faces, tiny_net, inner_steps=1, steps=2, decay=0.5, seed=3).delta)


@pytest.mark.parametrize(
    "blind",
    [
        lambda x: x.detach().mean((2, 3)),
        lambda x: torch.ones(len(x), 4) * torch.ones(1, requires_grad=True),
        lambda x: (x * 255).round().mean((2, 3)) + 0 * x.mean((2, 3)),
    ],
    ids=["detached", "unused", "rounded"],
)
def test_a_network_without_a_gradient_is_refused(faces, blind):
    with pytest.raises(ValueError, match="differentiable"):
        fit(faces, blind, steps=1)


def test_fit_many_refuses_unknown_options_and_other_collections(tiny_net, faces):
    with pytest.raises(TypeError, match="unknown option step;"):
        fit_many({"me": faces}, tiny_net, step=3)
    with pytest.raises(TypeError, match="mapping of name -> photos, got list"):
        fit_many([faces], tiny_net)
    with pytest.raises(ValueError, match="memory_budget"):
        fit_many({"me": faces}, tiny_net, memory_budget="4GB")


def published_opom(net, faces, steps, eps=EPS, alpha=ALPHA, seed=0):
    """OPOM's FI-UAP as in zhongyy/OPOM (class FIM), on the [0, 1] scale."""
    noise = torch.zeros_like(faces).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed)) * eps
    with torch.no_grad():
        clean = nn.functional.normalize(net(faces))
    cloaked = faces + noise
    for _ in range(steps):
        cloaked = cloaked.detach().requires_grad_()
        (nn.functional.normalize(net(cloaked)) - clean).square().mean().backward()
        moved = cloaked.detach() + alpha * cloaked.grad.mean(0, keepdim=True).sign()
        delta = (moved - faces).mean(0, keepdim=True).clamp(-eps, eps)
        cloaked = (faces + delta).clamp(0, 1)
    return delta[0]


def test_ga_with_one_full_batch_is_plain_sign_steps(tiny_net, faces):
    cloak = fit(faces, tiny_net, preset="plain", objective="fi_uap", batch_size=6, inner_steps=1, steps=4)
    expected = full_batch_sign_steps(tiny_net, faces, steps=4)
    # Pixels may differ where a gradient is a rounding error from zero: the photos are summed in another order.
    assert (cloak.delta - expected).abs().gt(1e-6).float().mean() < 0.002


def test_opom_is_the_published_loop(tiny_net, faces):
    cloak = fit(faces, tiny_net, method="opom", objective="fi_uap", steps=4)
    expected = published_opom(tiny_net, faces, steps=4)
    assert (cloak.delta - expected).abs().gt(1e-6).float().mean() < 0.002


def test_opom_clips_photos_as_published(tiny_net):
    # Photos that are partly black and white, where a mask is lost to clipping and the published mean shrinks.
    faces = (smooth_faces(5) * 3 - 1).clamp(0, 1)
    cloak = fit(faces, tiny_net, method="opom", objective="fi_uap", steps=4)
    assert (cloak.delta - published_opom(tiny_net, faces, steps=4)).abs().gt(1e-6).float().mean() < 0.002
    assert (
        differing(cloak, fit(faces, tiny_net, preset="plain", objective="fi_uap", batch_size=5, inner_steps=1, steps=4))
        > 0.1
    )


def test_inner_alpha_zero_over_a_partition_is_the_full_batch(tiny_net, faces):
    full = fit(faces, tiny_net, preset="plain", objective="fi_uap", batch_size=6, inner_steps=1, steps=4)
    summed = fit(
        faces, tiny_net, preset="plain", objective="fi_uap", batch_size=2, inner_steps=3, inner_alpha=0.0, steps=4
    )
    moving = fit(faces, tiny_net, preset="plain", objective="fi_uap", batch_size=2, inner_steps=3, steps=4)
    assert differing(full, summed) < 0.002
    assert differing(full, moving) > 0.02


def test_class_center_and_fi_uap_plus_give_the_same_cloak(tiny_net, faces):
    # Gradients are equal up to a factor, so masks are equal but for signs of gradients that round across zero.
    for method in ("ga", "opom"):
        center = fit(faces, tiny_net, method=method, preset="plain", objective="class_center", steps=2)
        plus = fit(faces, tiny_net, method=method, preset="plain", objective="fi_uap_plus", steps=2)
        assert differing(center, plus) < 0.005


@pytest.mark.parametrize("method", ["ga", "opom"])
@pytest.mark.parametrize("objective", ["fi_uap", "fi_uap_plus", "class_center", "affine_hull", "convex_hull"])
def test_delta_never_exceeds_eps_and_features_move_away(tiny_net, faces, tmp_path, method, objective):
    cloak = fit(faces, tiny_net, method=method, preset="plain", objective=objective, decay=0.5)
    assert cloak.delta.dtype == torch.float32
    assert cloak.delta.abs().max().item() <= EPS  # as Python numbers: float32(8/255) would be above 8/255
    assert cloak.delta.abs().max().item() > 0.99 * EPS
    cloak.save(tmp_path / "me.safetensors")
    assert torch.equal(fastcloak.load(tmp_path / "me.safetensors").delta, cloak.delta)
    with torch.no_grad():
        clean, cloaked = (nn.functional.normalize(tiny_net(x)) for x in (faces, cloak.apply(faces)))
        noise = EPS * torch.randint(0, 2, (3, 112, 112), generator=torch.Generator().manual_seed(1)).mul(2).sub(1)
        noisy = nn.functional.normalize(tiny_net((faces + noise).clamp(0, 1)))
    assert (cloaked * clean).sum(1).mean() < (noisy * clean).sum(1).mean() - 0.05
    assert cloak.info["losses"][-1] > cloak.info["losses"][5 if objective == "convex_hull" else 0]


def test_info_records_the_cost_and_what_ran(tiny_net, faces):
    cloak = fit(faces, tiny_net, steps=3, batch_size=4, inner_steps=5)
    assert cloak.info["image_gradients"] == 3 * 5 * 4
    assert len(cloak.info["losses"]) == 3
    assert (cloak.info["backend"], cloak.info["engine"], cloak.info["dtype"]) == ("reference", "eager", "float32")
    assert cloak.info["folded"]
    assert cloak.info["models"] == ["TinyNet"]
    assert cloak.info["photos"] == 6
    assert fit(faces, tiny_net, method="opom", steps=3).info["image_gradients"] == 3 * 6
    assert cloak.info["hull_gap"] < 1e-6


@pytest.mark.usefixtures("large_programs")
@pytest.mark.parametrize(
    "options",
    [
        {"method": "ga", "objective": "convex_hull", "warmup": 0, "decay": 0.9},
        {"method": "ga", "objective": "affine_hull", "batch_size": 2},
        {"method": "opom", "objective": "fi_uap"},
    ],
    ids=lambda options: f"{options['method']}-{options['objective']}",
)
def test_triton_learns_the_cloak_of_the_reference(tiny_net, options):
    # In Triton's interpreter where there is no GPU.
    people = {str(i): smooth_faces(3, seed=i) for i in range(2)}
    options = {**options, "steps": 1, "memory_budget": 10**9, "engine": "eager"}
    if options["method"] == "ga":
        options["inner_steps"] = 2
    plain = fit_many(people, tiny_net, backend="reference", **options)
    fused = fit_many(people, tiny_net, backend="triton", **options)
    for name in people:
        assert (plain[name].info["backend"], fused[name].info["backend"]) == ("reference", "triton")
        assert fused[name].info["losses"] == pytest.approx(plain[name].info["losses"], rel=1e-4)
        # Sums over photos and features in another order turn signs of gradients near zero.
        assert differing(plain[name], fused[name]) < 0.01
        assert fused[name].delta.abs().max().item() <= EPS


def test_schedule_uses_every_photo_equally_often(tiny_net):
    seen = []

    def spy(x):
        seen.append((x[:, 0, 0, 0] * 255).round().int().tolist())
        return tiny_net(x)

    faces = smooth_faces(6)
    faces[:, 0, 0, 0] = torch.arange(6) * 40 / 255  # a mark that a mask of at most 8 levels cannot hide
    fit(faces, spy, preset="plain", batch_size=2, inner_steps=3, steps=4)
    batches = [batch for batch in seen if len(batch) == 2][-12:]  # loading the network tries it on pictures first
    drawn = [round(mark / 40) for batch in batches for mark in batch]
    assert len(drawn) == 24
    for first in range(0, 24, 6):
        assert sorted(drawn[first : first + 6]) == list(range(6))
    assert drawn[:6] != drawn[6:12]


@pytest.mark.parametrize("method", ["ga", "opom"])
def test_a_person_alone_and_among_others_gets_the_same_cloak(tiny_net, method):
    people = {f"person {i}": smooth_faces(4 + i % 3, seed=i) for i in range(7)}
    options = {"method": method, "steps": 3} if method == "opom" else {"steps": 3, "inner_steps": 2}
    one_by_one = fit_many(people, tiny_net, **options)
    shared_passes = fit_many(people, tiny_net, memory_budget=10**9, **options)
    assert list(one_by_one) == list(shared_passes) == list(people)
    for name, faces in people.items():
        alone = fit(faces, tiny_net, **options)
        assert torch.equal(one_by_one[name].delta, alone.delta)
        # Another batch size rounds differently, and a sign near zero may turn: few pixels in three steps, more later.
        assert differing(shared_passes[name], alone) < 0.01


def test_shared_passes_are_fewer_and_no_weaker(tiny_net):
    sizes = []

    def spy(x):
        sizes.append(len(x))
        return tiny_net(x)

    people = {f"person {i}": smooth_faces(4, seed=i) for i in range(5)}
    shared_passes = fit_many(people, spy, memory_budget=10**9, steps=8, batch_size=2, inner_steps=2)
    assert sizes.count(10) == 16
    one_by_one = fit_many(people, tiny_net, steps=8, batch_size=2, inner_steps=2)
    for name in people:
        assert shared_passes[name].info["losses"][-1] == pytest.approx(one_by_one[name].info["losses"][-1], rel=0.03)


def test_one_bad_person_does_not_lose_the_others(tiny_net, faces):
    people = {"good": faces, "one photo": faces[:1], "black": faces.clone(), "other": smooth_faces(6, seed=1)}

    def breaks_on_black(x):
        return torch.where((x.amax((1, 2, 3)) < 0.1)[:, None], math.nan, tiny_net(x))

    people["black"][2] = 0
    with pytest.raises(FitManyError, match="2 of 4 people") as caught:
        fit_many(people, breaks_on_black)
    assert list(caught.value.cloaks) == ["good", "other"]
    assert torch.equal(caught.value.cloaks["good"].delta, fit(faces, breaks_on_black).delta)
    assert "2 photos" in str(caught.value.errors["one photo"])
    assert isinstance(caught.value.errors["black"], FloatingPointError)


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_nan_gradients_stop_with_the_step(tiny_net, faces, average):
    options = {"method": "opom", "objective": "fi_uap", "steps": 8, "average": average}
    calls = 0

    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            nonlocal calls
            calls += 1
            return grad * math.nan if calls == 5 else grad

    with pytest.raises(FloatingPointError, match="step 6 of 8"):
        fit(faces, lambda x: tiny_net(Breaks.apply(x)), **options)
    calls = -3
    with pytest.raises(FloatingPointError, match="step 8 of 8"):
        fit(faces, lambda x: tiny_net(Breaks.apply(x)), **options)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_embeddings_are_refused_before_the_first_step(faces, value):
    with pytest.raises(FloatingPointError, match="finite"):
        fit(faces, lambda x: x.mean((2, 3)) * value)


def test_progress_is_called_after_every_step(tiny_net, faces):
    calls = []
    fit(faces, tiny_net, steps=4, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    calls.clear()
    people = {"a": faces, "b": faces, "c": smooth_faces(3)}
    counted = {"progress": lambda done, total: calls.append((done, total)), "memory_budget": 10**9}
    fit_many(people, tiny_net, steps=2, **counted)
    assert calls == [(2, 6), (4, 6), (5, 6), (6, 6)]


def test_silent_where_there_is_no_terminal(tiny_net, faces, capfd):
    fit(faces, tiny_net, steps=2)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    fit(faces, tiny_net, steps=2, progress=True)
    assert "2/2" in capfd.readouterr().err


def test_any_callable_and_other_dtypes_work(tiny_net, faces):
    for dtype in ("bfloat16", torch.bfloat16):
        cloak = fit(faces, tiny_net, dtype=dtype, steps=4)
        assert cloak.info["dtype"] == "bfloat16"
        assert cloak.delta.dtype == torch.float32
    # The module is folded and the callable is not: they round differently, which many sign steps would make grow.
    options = {"method": "opom", "steps": 4}
    assert differing(fit(faces, tiny_net, **options), fit(faces, lambda x: tiny_net(x), **options)) < 0.01


def test_an_ensemble_moves_away_from_every_member(tiny_net, faces):
    other = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(588, 9, bias=False)).eval()
    nn.init.normal_(other[2].weight, generator=torch.Generator().manual_seed(0))
    noise = EPS * torch.randint(0, 2, (3, 112, 112), generator=torch.Generator().manual_seed(1)).mul(2).sub(1)
    cloak = fit(faces, [tiny_net, other], preset="plain")
    assert cloak.info["models"] == ["TinyNet", "Sequential"]
    for net in (tiny_net, other):
        with torch.no_grad():
            pictures = faces, cloak.apply(faces), (faces + noise).clamp(0, 1)
            clean, cloaked, noisy = (nn.functional.normalize(net(x)) for x in pictures)
        # Angles to the clean embeddings: the cloak turns every member at least three times as far as noise does.
        assert 1 - (clean * cloaked).sum(1).mean() > 9 * (1 - (clean * noisy).sum(1).mean())


def test_fits_run_side_by_side_in_threads(tiny_net, faces):
    expected = fit(faces, tiny_net, steps=2)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: fit(faces, tiny_net, steps=2), range(6)))
    assert all(torch.equal(result.delta, expected.delta) for result in results)


def test_same_seed_same_cloak_in_another_process():
    code = (
        "from fastcloak import fit; from tests.conftest import TinyNet, smooth_faces; import hashlib\n"
        "delta = fit(smooth_faces(6), TinyNet(), steps=3).delta\n"
        "print(hashlib.sha256(delta.numpy().tobytes()).hexdigest())\n"
    )
    command = [sys.executable, "-c", code]
    root = Path(__file__).parent.parent
    hashes = {subprocess.run(command, capture_output=True, text=True, cwd=root, check=True).stdout for _ in range(2)}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 65


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eps": 8}, r"eps must be in \[0, 1\].*255, got 8"),
        ({"eps": math.nan}, "eps must be"),
        ({"alpha": 2}, "alpha must be"),
        ({"steps": -1}, "steps must be a whole number, 0 or more, .*got -1"),
        ({"steps": 1.5}, "steps must be a whole number.*got 1.5"),
        ({"steps": "16"}, "steps must be a whole number.*got '16'"),
        ({"steps": 10**12}, "steps must be"),
        ({"steps": 10**5, "inner_steps": 10**5}, r"steps \* inner_steps must be at most"),
        ({"steps": True}, "steps must be a whole number.*got True"),
        ({"eps": "8"}, "eps must be .*got '8'"),
        ({"eps": True}, "eps must be .*got True"),
        ({"seed": 2**64}, "seed must be"),
        ({"random_start": "False"}, "random_start must be True or False, got 'False'"),
        ({"warmup": 2.5}, "warmup must be"),
        ({"decay": True}, "decay must be"),
        ({"lower": -math.inf}, "lower must be"),
        ({"device": "meta"}, "device must be"),
        ({"device": None}, "device must be"),
        ({"dtype": "float16"}, "dtype must be"),
        ({"method": "pgd"}, "method must be one of ga, opom, got 'pgd'"),
        ({"objective": "hull"}, "objective must be one of fi_uap"),
        ({"decay": -1}, "decay must be"),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more"),
        ({"method": "opom", "batch_size": 2}, "batch_size must be left out: 'opom'"),
        ({"method": "opom", "preset": "fast"}, "preset 'fast' belongs to method 'ga'"),
        ({"preset": "best"}, "preset must be one of plain, fast, balanced, strong, got 'best'"),
        ({"preset": ["fast"]}, "preset must be one of"),
        ({"preset": "plain", "upper": 0.1}, "room around 1/N"),
        ({"lower": 0.5, "upper": 0.2}, "upper must be above lower"),
        ({"objective": "fi_uap", "random_start": False}, "random_start must be True for fi_uap"),
        ({"objective": "affine_hull", "random_start": False}, "random_start must be True"),
        ({"preset": "plain", "warmup": 0, "random_start": False}, "random_start must be True for convex_hull"),
        ({"device": "nowhere"}, "device must be"),
        ({"backend": "fortran"}, "backend must be one of auto, reference, triton"),
        ({"engine": "steam"}, "engine must be one of"),
        ({"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_bad_options_are_refused_with_a_clear_message(tiny_net, faces, options, words):
    with pytest.raises(ValueError, match=words):
        fit(faces, tiny_net, **options)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.full((3, 3, 112, 112), 255.0), "divide by 255"),
        (torch.full((3, 3, 112, 112), math.nan), "NaN"),
        (torch.zeros(1, 3, 112, 112), "2 photos of the person or more"),
        (torch.zeros(0, 3, 112, 112), "photo"),
        ([], "photo"),
    ],
)
def test_bad_photos_are_refused_with_a_clear_message(tiny_net, images, words):
    with pytest.raises(ValueError, match=words):
        fit(images, tiny_net)


def test_zero_start_works_where_it_can(tiny_net, faces):
    for objective in ("class_center", "convex_hull"):
        assert fit(faces, tiny_net, objective=objective, random_start=False).delta.abs().max() > 0.9 * EPS


def test_presets_are_budgets_that_other_options_override(tiny_net, faces):
    def cost(**options):
        config = configure(options)
        return config.steps * config.inner_steps * config.batch(10)

    assert [cost(preset=preset) for preset in ("plain", "fast", "balanced", "strong")] == [160, 160, 640, 1280]
    assert configure({}) == configure({"preset": "fast", "decay": None, "eps": None})
    assert {*get_type_hints(FitOptions), "preset", "eps", "seed"} == set(declared())
    assert configure({"method": "opom"}).preset == "plain"
    config = configure({"preset": "strong", "steps": 3, "augment": "flip", "decay": 0})
    assert (config.steps, config.augment, config.decay, config.ensemble) == (3, ("flip",), 0, "turns")
    config = configure({"augment": "+photo, blur"})
    assert config.augment == ("symmetry", "jitter", "photo", "color", "blur", "geometry", "flip")
    assert configure({"preset": "plain", "augment": "+photo"}).augment == ("photo",)
    with pytest.raises(ValueError, match="augment must be names out of"):
        configure({"augment": "+foto"})
    cloak = fit(faces, tiny_net, preset="balanced", steps=2)
    assert (cloak.info["preset"], cloak.info["augment"], cloak.info["steps"]) == (
        "balanced",
        ["symmetry", "jitter", "color", "geometry", "flip"],
        2,
    )
    assert not torch.equal(cloak.delta, fit(faces, tiny_net, preset="plain", steps=2).delta)


def test_a_copy_of_a_photo_counts_once(tiny_net, faces, caplog):
    brighter = (0.9 * faces[1] + 0.05)[None]
    cloak = fit(torch.cat((faces, faces[:1], brighter)), tiny_net, steps=2, inner_steps=1)
    assert torch.equal(cloak.delta, fit(faces, tiny_net, steps=2, inner_steps=1).delta)
    assert (cloak.info["photos"], cloak.info["copies"]) == (6, 2)
    assert "images[6] of images[0], images[7] of images[1]" in caplog.text
    with pytest.raises(ValueError, match=r"strict.*images\[6\] of images\[0\]"):
        fit(torch.cat((faces, faces[:1])), tiny_net, steps=2, strict=True)
    with pytest.raises(ValueError, match=r"2 photos.*got 1 and copies: images\[1\]"):
        fit(faces[:1].repeat(3, 1, 1, 1), tiny_net, steps=2)


@pytest.mark.parametrize("named", ["someone", "sface"])
def test_photos_unlike_most_others_are_named(faces, caplog, named):
    own = (torch.eye(8)[0] + 0.3 * torch.eye(8)[1:5]).repeat(2, 1)  # eight photos of one person
    both = nn.functional.normalize(torch.cat((own, torch.eye(8)[5:7])))
    bound = 0.303 if named == "sface" else None
    assert strangers(both, bound) == [8, 9]
    assert strangers(both[:8], bound) == []
    half = nn.functional.normalize(torch.cat((own[:4], torch.eye(8)[7] + 0.3 * torch.eye(8)[1:5])))
    assert strangers(half, bound) == list(range(8))
    assert strangers(both[7:9], bound) == ([0, 1] if bound else [])  # of an unknown network two photos say nothing


def test_a_photo_of_someone_else_is_named_and_strict_refuses_it(tiny_net, faces, caplog, monkeypatch):
    monkeypatch.setattr("fastcloak.fitting.run.strangers", lambda features, bound: [2])
    people = {"anna": {f"{i}.jpg": face for i, face in enumerate(faces)}}
    cloak = fit_many(people, tiny_net, steps=2, inner_steps=1)["anna"]
    assert "anna: photos that are unlike most of the others" in caplog.text
    assert "(1): 2.jpg" in caplog.text
    assert cloak.info["strangers"] == 1
    assert torch.equal(cloak.delta, fit(faces, tiny_net, steps=2, inner_steps=1).delta)
    with pytest.raises(FitManyError, match=r"anna: .*strict.*2\.jpg"):
        fit_many(people, tiny_net, steps=2, inner_steps=1, strict=True)


@pytest.mark.parametrize("option", [{"eps": 0.0}, {"eps": 0.3 / 255}, {"steps": 0}, {"alpha": 0.0}])
def test_a_fit_of_nothing_works_and_is_named(tiny_net, faces, caplog, option):
    cloak = fit(faces, tiny_net, **{"steps": 1, "inner_steps": 1, **option})
    assert "protects nothing" in caplog.text
    assert cloak.idle is not None
    assert fit(faces, tiny_net, steps=1, inner_steps=1).idle is None
