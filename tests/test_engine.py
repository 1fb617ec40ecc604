"""Engines: what launches a step must not change what it computes."""

import shutil

import pytest
import torch

from fastcloak import fit, fit_many
from fastcloak.ops.engine import Progress, launchers, network, resolve_engine
from fastcloak.system.errors import EngineError
from tests.conftest import smooth_faces

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
        fit(faces, reads_back, engine="compile", steps=1, device="cpu")
    assert fit(faces, reads_back, steps=1, device="cpu", engine="eager").info["engine"] == "eager"


@needs_compiler
def test_a_recompilation_is_an_error():
    double = network("compile", lambda x: x * 2)
    sizes = iter((3, 3, 3, 4))
    step = launchers("compile", {"step": lambda: double(torch.ones(next(sizes)))})["step"]
    step()
    with pytest.raises(RuntimeError, match="(?i)recompil"):
        step()
    sizes = iter((3, 4))
    with pytest.raises(EngineError, match="(?i)engine 'compile' cannot run this network: .*recompil"):
        launchers("compile", {"step": lambda: double(torch.ones(next(sizes)))})


@needs_compiler
def test_more_networks_than_torch_would_recompile_for():
    for i in range(12):
        assert network("compile", lambda x, i=i: x * i)(torch.ones(3)).sum() == 3 * i


def test_on_a_cpu_a_step_runs_when_it_is_launched_and_progress_is_immediate():
    calls, ticks = [], []
    step = launchers("eager", {"step": lambda: calls.append(1)})["step"]
    assert calls == []
    step()
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
