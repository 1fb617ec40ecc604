"""Float32 as a GPU multiplies it, with ten bits of mantissa in convolutions, must decide nothing."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F

import fastcloak
from bench.harness import nets
from bench.harness.rows import read
from bench.speed import gpu
from bench.speed.operations import hull_operations
from fastcloak.fitting.options import OBJECTIVES
from fastcloak.models import load_model, prepare, unit_features
from fastcloak.ops import reference
from fastcloak.ops.hull import build_hull, interior_point
from tests.conftest import TinyNet, smooth_faces
from tests.tf32 import Tf32, tf32

NETS = {"tiny": TinyNet, "mobilefacenet": nets.mobilefacenet}


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def test_numbers_are_rounded_to_ten_bits_ties_to_even():
    bit = 2.0**-10
    given = torch.tensor([1 + bit / 2, 1 + 1.5 * bit, 1 + 0.49 * bit, -1 - 0.51 * bit, 0, torch.inf, -torch.inf])
    assert tf32(given).tolist() == [1, 1 + 2 * bit, 1, -1 - bit, 0, torch.inf, -torch.inf]
    assert tf32(torch.tensor([torch.nan])).isnan().all()
    x = torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert tf32(x).stride() == x.stride()
    assert 0 < relative(tf32(x), x) <= bit / 2


@contextmanager
def rounded_products():
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def products():
    """How far a convolution, its gradient and a linear layer are from float64."""
    generator = torch.Generator().manual_seed(0)
    x, kernel, weight = (torch.randn(size, generator=generator) for size in ((2, 3, 9, 9), (4, 3, 3, 3), (5, 243)))
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        maps = F.conv2d(leaf, kernel.to(dtype))
        numbers = F.linear(x.to(dtype).flatten(1), weight.to(dtype))
        found.append([maps, torch.autograd.grad(maps.sum(), leaf)[0], numbers])
    return [relative(single, double) for single, double in zip(*found, strict=True)]


def test_convolutions_are_rounded_where_pytorch_allows_it_and_products_where_it_is_asked_to():
    exact = 1e-6
    assert max(products()) < exact
    with Tf32():
        forward, backward, linear = products()
        assert min(forward, backward) > 1e-5 > exact > linear
        with torch.backends.cudnn.flags(allow_tf32=False):
            assert max(products()) < exact
        with rounded_products():
            assert min(products()) > 1e-5


@pytest.mark.parametrize("name", NETS)
def test_networks_are_folded(name):
    surrogate, faces = load_model(NETS[name]()), smooth_faces(2)
    expected = unit_features(surrogate, faces)
    with Tf32() as products:
        prepared = prepare(surrogate, dtype=torch.float32)
        assert prepared.folded, prepared.notes
        before = products.rounded
        assert (unit_features(prepared, faces) * expected).sum(1).min() > 0.999
        assert products.rounded > before, "and then runs in TF32 where it may"


def test_photos_are_told_apart_as_without():
    faces, net = torch.cat((smooth_faces(4), smooth_faces(2, seed=9))), nets.mobilefacenet()
    surrogate = load_model(net)
    exact = unit_features(surrogate, faces)
    with Tf32():
        rounded = unit_features(surrogate, faces)
        assert torch.allclose(rounded.norm(dim=1), torch.ones(6), atol=1e-6)
        load_model(net)  # whose pictures may not depend on others in a batch
    assert (rounded @ rounded.T - exact @ exact.T).abs().max() < 1e-2


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_hulls_and_losses_are_those_of_float32(objective, caplog):
    options = {"preset": "plain", "objective": objective, "steps": 4, "warmup": 1, "inner_steps": 2}
    options |= {"device": "cpu", "backend": "reference", "engine": "eager", "dtype": "float32"}
    exact = fastcloak.fit(smooth_faces(6), TinyNet(), **options)
    with Tf32() as products:
        cloak = fastcloak.fit(smooth_faces(6), TinyNet(), **options)
    assert products.rounded > 8 * 3
    assert cloak.info["folded"]
    assert cloak.info["hull_gap"] <= 1e-6
    assert cloak.info["losses"] == pytest.approx(exact.info["losses"], rel=0.02, abs=1e-4)
    assert caplog.records == []


@pytest.mark.parametrize("kind", ["random", "duplicates"])
def test_the_duality_gap_of_hull_weights_does_not_depend_on_how_products_are_rounded(kind):
    generator = torch.Generator().manual_seed(0)
    clean = F.normalize(torch.randn(2, 8, 64, generator=generator), dim=-1)
    if kind == "duplicates":
        clean[:, 4:] = clean[:, :4]
    with rounded_products(), Tf32() as products:
        hull = build_hull(clean, "convex_hull")
        features = torch.randn(2, 3, 64, generator=generator)
        index = torch.zeros(2, 3, dtype=torch.int64)
        *_, gap = reference.hull_loss(features, hull.points, hull.gram, hull.center, index, "convex_hull")
        weights, certified = interior_point(hull.gram, features @ hull.points.mT)
    assert products.rounded > 0
    assert gap.max() <= 1e-6
    assert certified.max() <= 1e-6
    assert (weights.sum(-1) - 1).abs().max() <= 1e-9


@pytest.mark.parametrize("section", ["ladder", "people", "engines"])
def test_what_bench_measures_agrees_with_the_reference(section, tmp_path, capsys):
    with Tf32() as products:
        assert gpu.run_section(gpu.Run(tmp_path, dry_run=True, ends=float("inf")), section)
    rows = read(tmp_path / f"gpu_{section}_cpu_dry_run.csv")
    assert products.rounded > 0
    assert {(row.get("agrees", "True"), row["note"]) for row in rows} == {("True", "")}


def test_bench_takes_operations_under_tf32_for_the_same():
    for operation in hull_operations(1, 2, torch.float32, torch.device("cpu"), photos=3, size=64):
        (exact, arguments), (rounded, others) = (operation.call_of(reference) for _ in range(2))
        expected = exact()
        with Tf32():
            error, agrees = operation.compared(rounded(), others, expected, arguments)
        assert agrees, f"{operation}: {error}"
