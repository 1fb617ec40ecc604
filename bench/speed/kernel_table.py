"""Registers, spills, access widths, barriers and bytes of every kernel variant that a fit uses, compiled without a GPU.

    python -m bench.speed.kernel_table -o bench/results/kernel_table.csv

Every operation is called on CPU tensors at P = 1, b = 10, 112 x 112, D = 512, K = 10 (unless the variant's name says
otherwise) with the launch replaced by a recorder, so that what is compiled is what the launcher would launch, with the
same specialisation: 16-byte aligned pointers and integers divisible by 16 are known as such, integers equal to 1 are
constants. Exits with 1 if a kernel of fastcloak.kernels has no variant here, spills, needs more registers or more
barriers inside its loops than its budget, touches pictures 4 bytes at a time, or loads behind a store without need.
"""

from __future__ import annotations

import math
import os
import pkgutil
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource

from bench.harness.command import command
from bench.harness.rows import Rows
from bench.speed.machine_code import MachineCode, machine_codes
from fastcloak.fitting.options import OBJECTIVES
from fastcloak.ops.jpeg import jpeg_tables

ARCHITECTURES = (80, 90)

P, B, SIDE, D, K = 1, 10, 112, 512, 10

BUDGETS = {
    # At most 128 registers let 8 programs of 64 threads share an SM, which one launch of a single person never fills.
    "_accumulate_step_kernel": 128,
    "_partial_sums_kernel": 64,
    "_outer_step_kernel": 64,
    "_cloak_batch_kernel": 128,
    "_view_batch_kernel": 128,
    "_view_step_kernel": 128,
    "_sizes_kernel": 64,
    "_jpeg_blocks_kernel": 168,
    "_jpeg_joined_kernel": 64,
    "_jpeg_gradient_kernel": 128,
    "_photo_kernel": 128,
    "_apart_kernel": 128,
    "_frozen_prelu_kernel": 32,
    "_frozen_prelu_grad_kernel": 32,
    # One program per photo and usually fewer photos than SMs: what counts is that nothing spills, at 255.
    "_hull_loss_kernel": 255,
}
"""Registers per thread."""

GATHERS = {name for name in BUDGETS if re.match("_(view|sizes|jpeg|photo|apart)_", name)}
"""Kernels that read around each pixel: what they touch depends on the view, of which only the least is said here."""

LOOP_BARRIERS = {"_hull_loss_kernel": 90, "_view_step_kernel": 11, "_apart_kernel": 28}
"""Barriers in the code of all loops of a kernel. Convex weights go round 13 times, their pivots 13 K."""

LONE_WARP_BARRIERS = 6
"""The same for `hull_loss` where one warp has to do: K <= 16, D <= 1024."""

PHOTOS = {512: (2, 4, 7, 10, 24, 48), 128: (10, 48)}
"""K of the hulls here by D: one of every padded size, for which `hull_loss` launches the same kernel; fewer where the
rows of points are short and leave more registers."""

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.uint8: "u8",
}
TRAFFIC = ("bytes_read", "bytes_written", "least_read", "least_written")


@dataclass(frozen=True)
class Launch:
    """One launch as the launcher asked for it: the kernel, its arguments by name, its grid and options."""

    kernel: Any
    arguments: dict[str, Any]
    grid: tuple[int, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


def kernel_functions() -> list[Any]:
    """The launched kernels: functions named `_.._kernel` of all files of the package."""
    package = import_module("fastcloak.kernels")
    modules = [import_module(f"fastcloak.kernels.{file.name}") for file in pkgutil.iter_modules(package.__path__)]
    return [getattr(m, name) for m in modules for name in vars(m) if re.fullmatch(r"_\w+_kernel", name)]


@contextmanager
def recorded(run: bool = False) -> Iterator[list[Launch]]:
    """Collects the launches of the body; `run` also executes them."""
    launches: list[Launch] = []
    functions = kernel_functions()
    originals = [function.run for function in functions]

    def recorder(function: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        def record(*positional: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> None:
            options = {name: value for name, value in named.items() if name not in function.arg_names}
            named = {name: value for name, value in named.items() if name in function.arg_names}
            arguments = dict(zip(function.arg_names, positional, strict=False)) | named
            launches.append(Launch(function, arguments, grid, options))
            if run:
                original(*positional, grid=grid, warmup=warmup, **named, **options)

        return record

    try:
        for function, original in zip(functions, originals, strict=True):
            function.run = recorder(function, original)
        yield launches
    finally:
        for function in functions:
            del function.run


def variants() -> Iterator[tuple[str, Callable[[], object]]]:
    kernels = import_module("fastcloak.kernels")
    state = [torch.zeros(P, 3, SIDE, SIDE) for _ in range(4)]
    state_last = [t.to(memory_format=torch.channels_last) for t in state]
    scale = torch.ones(3)
    index = torch.zeros(P, B, dtype=torch.int64)

    def pictures(dtype: torch.dtype, last: bool = False, b: int = B) -> torch.Tensor:
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.zeros(P * b, 3, SIDE, SIDE, dtype=dtype).to(memory_format=layout)[None]  # P = 1

    def hull(objective: str, dtype: torch.dtype = torch.float32, K: int = K, D: int = D) -> Callable[[], object]:
        features, points = torch.zeros(P, B, D, dtype=dtype), torch.zeros(P, K, D)
        gram, center = torch.zeros(P, K, K, dtype=torch.float64), torch.zeros(P, D)
        return partial(kernels.hull_loss, features, points, gram, center, index, objective)

    for objective, size in product(OBJECTIVES, PHOTOS):
        for photos in PHOTOS[size] if objective.endswith("_hull") else (K,):
            name = f"{objective} K={photos}" if objective.endswith("_hull") else objective
            yield f"{name} D={size}", hull(objective, K=photos, D=size)
    yield "affine_hull K=10 D=512 bfloat16", hull("affine_hull", torch.bfloat16)
    yield "convex_hull K=10 D=2048", hull("convex_hull", D=2048)
    yield "convex_hull K=48 D=2048", hull("convex_hull", K=48, D=2048)
    yield "affine_hull K=10 D=8192", hull("affine_hull", D=8192)

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for last in (False, True):
            name = f"{str(dtype).removeprefix('torch.')}{' channels_last' if last else ''} scale"
            acc, delta, delta_in, _ = state_last if last else state
            grads, out = pictures(dtype, last), pictures(dtype, last)
            faces = pictures(torch.float32, last)
            yield name, partial(kernels.accumulate_step_, grads, acc, delta_in, 0.1, 0.2, scale=scale)
            yield name, partial(kernels.cloak_batch_, faces, delta, index, out, scale, scale)
    acc, velocity, delta, delta_in = state
    faces = faces.contiguous()
    one = pictures(torch.float32, b=1)
    yield "float32 b=1", partial(kernels.accumulate_step_, one, acc, delta_in, 0.1, 0.2)
    yield "float32 b=1", partial(kernels.cloak_batch_, faces, delta, index[:, :1], one)
    for b in (5, 20):
        name, some = f"bfloat16 b={b} bound scale", pictures(torch.bfloat16, b=b)
        yield name, partial(kernels.accumulate_step_, some, acc, delta_in, 0.1, 0.2, scale=scale)
        yield (
            name,
            partial(kernels.cloak_batch_, faces, delta, index[:, :1].expand(P, b), some, scale, scale, bound=acc),
        )
    face = pictures(torch.float32, b=1)
    yield "float32 N=1 b=1 bound", partial(kernels.cloak_batch_, face, delta, index[:, :1], one, bound=acc)
    yield from views(kernels)
    yield from prelus(kernels)
    yield "plain", partial(kernels.outer_step_, acc, velocity, delta, delta_in, 0.1, 0.2)
    yield "momentum", partial(kernels.outer_step_, acc, velocity, delta, delta_in, 0.1, 0.2, 1.0)


def views(kernels: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """Views as the presets and tailored albums, on canvases of 160, take them."""
    draws, index, scale = torch.zeros(1, 1, 13), torch.zeros(1, 1, dtype=torch.int64), torch.ones(3)
    faces, canvas = torch.zeros(1, 1, 3, SIDE, SIDE), torch.zeros(1, 1, 3, 160, 160)
    textures, place = torch.zeros(64, 3, SIDE, SIDE), torch.zeros(1, 2, 3)
    seen = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.bfloat16).to(memory_format=torch.channels_last)[None]
    moved, every = {"geometry": True, "flip": True}, {"geometry": True, "flip": True, "color": True}
    mask, large = faces[0], canvas[0]
    steps, shown = {"alpha": 0.1, "eps": 0.2, "scale": scale}, {"scale": scale, "shift": scale}
    yield "jitter", partial(kernels.view_batch_, faces, None, index, draws, faces.clone(), geometry=True)
    yield "fast", partial(kernels.view_batch_, faces, mask, None, draws, seen, **every, **shown)
    yield "fast", partial(kernels.view_step_, seen, draws, mask, mask.clone(), **every, **steps)
    yield "strong", partial(kernels.view_batch_, faces, mask, None, draws, faces.clone(), **every)
    yield "mix", partial(kernels.view_batch_, faces, mask, index, draws, faces.clone(), **every, textures=textures)
    yield "strong", partial(kernels.view_step_, faces, draws, mask, mask.clone(), **every, **steps, unit=True)
    yield "album color", partial(kernels.view_batch_, canvas, large, index, draws, canvas, color=True, bound=large)
    yield "album", partial(kernels.view_batch_, canvas, None, None, draws, seen, **moved, **shown, place=place)
    yield "album", partial(kernels.view_gradient_, seen, draws, canvas, **moved, scale=scale, place=place)
    yield "album color", partial(kernels.view_step_, canvas, draws, large, large.clone(), 0.1, 0.2, color=True)
    yield "album", partial(kernels.jpeg_batch_, canvas, draws, canvas, *jpeg_tables(torch.device("cpu")))
    yield "album", partial(kernels.jpeg_gradient_, canvas, canvas, torch.zeros(2, 3, 3))
    yield "photo", partial(kernels.photo_batch_, faces, mask, index, draws, faces.clone())
    yield "photo back", partial(kernels.photo_gradient_, faces, draws, faces.clone())
    others = torch.zeros(64, D), torch.zeros(128, 128), torch.zeros(128, 64), torch.zeros(128, D)
    yield "album", partial(kernels.apart_center, torch.zeros(128, D, dtype=torch.bfloat16), *others, 1.0, 0.1)


def prelus(kernels: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """PReLU forward and back, without a bias, with one a channel and with one a number."""
    for dtype, last in product((torch.float32, torch.bfloat16), (False, True)):
        layout = torch.channels_last if last else torch.contiguous_format
        x = torch.zeros(2, 64, 28, 28, dtype=dtype).to(memory_format=layout)
        slope = torch.zeros(64, dtype=dtype)
        for kind, bias in {"": None, " bias": slope, " bias picture": x[:1]}.items():
            name = f"{str(dtype).removeprefix('torch.')}{' channels_last' if last else ''}{kind}"

            def there_and_back(x: torch.Tensor = x, slope: torch.Tensor = slope, bias: Any = bias) -> None:
                leaf = x.detach().requires_grad_()
                y = kernels.frozen_prelu(leaf, slope, bias)
                torch.autograd.grad(y, leaf, y.detach())

            yield name, there_and_back


def traffic(launch: Launch) -> tuple[int, int, int, int]:
    """Bytes that the programs of a launch read and write, and the least: each input read and each output written once.

    The interpreter counts the same numbers (tests/test_kernels.py).
    """
    a = launch.arguments
    size = {name: value.numel() * value.element_size() for name, value in a.items() if torch.is_tensor(value)}
    programs = math.prod(launch.grid)
    if launch.name in GATHERS:
        outputs = {"out_ptr", "luma_ptr", "halved_ptr", "sizes_ptr", "acc_ptr", "delta_in_ptr"} & set(size)
        written = sum(size[name] for name in outputs)
        read = sum(bytes_ for name, bytes_ in size.items() if name not in outputs)
        return read, written, read, written
    if launch.name.startswith("_frozen_prelu"):
        outputs = {"y_ptr", "signs_ptr"} if "y_ptr" in size else {"out_ptr"}
        written = sum(size[name] for name in outputs)
        read = sum(size.values()) - written - (0 if a.get("BIASED", True) else size["bias_ptr"])
        return read, written, read, written
    if launch.name == "_hull_loss_kernel":
        photos, of_features, of_center = programs, size["features_ptr"], size["center_ptr"]
        P = photos // a["b"]
        read, least = of_features + of_center // P * photos, of_features + of_center
        K, D, objective = a["K"], a["D"], a["OBJECTIVE"]
        if objective == "fi_uap":
            read, least = read + photos * (8 + 4 * D), least + photos * (8 + 4 * D)
        if objective.endswith("_hull"):
            passes = 1 if a["KB"] == a["KP"] else 2
            read, least = read + passes * photos * 4 * K * D, least + P * 4 * K * D
        if objective == "convex_hull":
            read, least = read + photos * 8 * K * K, least + P * 8 * K * K
        written = size["grad_ptr"] + size["loss_ptr"] + size["gap_ptr"]
        return read, written, least, written

    if launch.name == "_accumulate_step_kernel":
        read = size["grads_ptr"] + size["delta_in_ptr"] + size["acc_ptr"]
        written, again = size["delta_in_ptr"] + size["acc_ptr"], 12 if a["SCALED"] else 0
    elif launch.name == "_partial_sums_kernel":
        read, written, again = size["acc_ptr"], size["partial_ptr"], 0
    elif launch.name == "_outer_step_kernel":
        read, written, again = 2 * size["acc_ptr"], 3 * size["acc_ptr"], 0
        if a["MOMENTUM"]:
            read, written, again = 3 * size["acc_ptr"], 4 * size["acc_ptr"], 4 * a["BLOCKS"]
    elif launch.name == "_cloak_batch_kernel":
        photos = launch.grid[0] * a["B"]
        read, written = photos * 4 * a["n"] + size["delta_in_ptr"], size["out_ptr"]
        read += size["bound_ptr"] if a["BOUNDED"] else 0
        again = 8 * a["B"] + (24 if a["SCALED"] else 0)
    else:
        raise ValueError(f"no formula for {launch.name}; add it here")
    # A few numbers that every program needs: index, scale, shift, partial sums (those once per person).
    persons = launch.grid[0] if "BLOCKS" in a or launch.name == "_cloak_batch_kernel" else 1
    return read + again * programs, written, read + again * persons, written


def scalars_allowed(launch: Launch) -> tuple[int, int]:
    """4-byte loads and stores that a kernel may hold, none of them on pictures: scale, shift, sums, slopes."""
    a = launch.arguments
    loads, stores = 0, 0
    if launch.name.startswith("_frozen_prelu"):
        # A byte of signs; and where the numbers of a channel lie side by side, a slope and a bias for each number.
        signs = launch.name == "_frozen_prelu_grad_kernel"
        each = 8 * (1 + bool(a.get("BIASED") and not a["PICTURE"])) if a["inner"] > 1 else 0
        return signs + each, not signs
    if a.get("SCALED"):
        loads += 6 if launch.name == "_cloak_batch_kernel" else 3
    if a.get("MOMENTUM"):
        loads += max(1, a["BLOCKS_PADDED"] // (32 * launch.options["num_warps"]))
    if launch.name == "_partial_sums_kernel":
        stores += 1
    return loads, stores


def source(launch: Launch) -> ASTSource:
    """The launch's kernel with its arguments' types, specialised as Triton's launcher would."""
    names = launch.kernel.arg_names
    compile_time = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    general = {parameter.name for parameter in launch.kernel.params if parameter.do_not_specialize}
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(names):
        value = launch.arguments[name]
        divisible = False
        if name in compile_time or (isinstance(value, int) and value == 1 and name not in general):
            signature[name], constants[(position,)] = "constexpr", value
        elif torch.is_tensor(value):
            signature[name], divisible = "*" + TYPES[value.dtype], value.data_ptr() % 16 == 0
        elif isinstance(value, int):
            signature[name], divisible = "i32" if value < 2**31 else "i64", value % 16 == 0
        else:
            signature[name] = "fp32"
        if divisible and name not in general:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def identity(launch: Launch) -> tuple[Any, ...]:
    """Equal for launches that run the same compiled kernel."""
    return source(launch).hash(), *sorted(launch.options.items())


@contextmanager
def ptx_only() -> Iterator[None]:
    """Triton does not assemble what it compiles, which `machine_codes` does; its cache must not keep such kernels."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        patch.dict(os.environ, TRITON_CACHE_DIR=scratch),
        patch.object(CUDABackend, "make_cubin", lambda *_: b""),
    ):
        yield


def compiled(launches: list[Launch], architecture: int) -> list[dict[str, int]]:
    """Resources, accesses and barriers of the launched kernels; each kernel is compiled once."""
    kernels = {identity(launch): launch for launch in launches}
    rows: dict[Any, dict[str, int]] = {}
    for fusion in (True, False):
        chosen = [one for one in kernels if kernels[one].options.get("enable_fp_fusion", True) == fusion]
        ptx = []
        for one in chosen:
            target = GPUTarget("cuda", architecture, 32)
            with ptx_only():
                kernel = triton.compile(source(kernels[one]), target=target, options=kernels[one].options)
            ptx.append(kernel.asm["ptx"])
            rows[one] = {"shared_bytes": int(kernel.metadata.shared)}
        for one, code in zip(chosen, machine_codes(ptx, architecture, fusion) if ptx else [], strict=True):
            rows[one] = resources(code) | rows[one]
    return [rows[identity(launch)] for launch in launches]


def resources(code: MachineCode) -> dict[str, int]:
    row = {"registers": code.registers, "spill_bytes": code.spill_bytes, "stack_bytes": code.stack_bytes}
    for word, accesses in (("loads", code.loads), ("stores", code.stores)):
        row |= {f"{word}_16": sum(access.bits == 128 for access in accesses)}
        row |= {f"{word}_8": sum(access.bits == 64 for access in accesses)}
        row |= {f"{word}_4": sum(access.bits < 64 for access in accesses)}
    row |= {"waits_for_stores": code.waits_for_stores, "barriers": sum(not one.loops for one in code.barriers)}
    return row | {"loop_barriers": sum(one.loops > 0 for one in code.barriers)}


def complaints(launch: Launch, row: dict[str, Any]) -> list[str]:
    a, wrong, hull = launch.arguments, [], launch.name == "_hull_loss_kernel"
    if row["spill_bytes"] or row["stack_bytes"]:
        wrong.append(f"spills {row['spill_bytes']} bytes, stack {row['stack_bytes']}")
    if row["registers"] > BUDGETS[launch.name]:
        wrong.append(f"{row['registers']} registers, budget {BUDGETS[launch.name]}")
    # Loads of one group of photos stand behind the stores of the group before.
    allowed = math.ceil(a["B"] / a["GROUP"]) - 1 if "GROUP" in a else 0
    # Some loads stand behind the stores of another branch, which no program takes too.
    allowed += launch.name in ("_view_step_kernel", "_jpeg_blocks_kernel")
    if row["waits_for_stores"] > allowed:
        wrong.append(f"{row['waits_for_stores']} loads wait for a store that they do not need, {allowed} allowed")
    lone = hull and a["KP"] <= 16 and a["DP"] <= 1024
    budget = LONE_WARP_BARRIERS if lone else LOOP_BARRIERS.get(launch.name, 0)
    if row["loop_barriers"] > budget:
        wrong.append(f"{row['loop_barriers']} barriers inside loops, budget {budget}")
    if launch.name in GATHERS:
        return wrong
    if hull:
        return wrong + ([] if row["loads_16"] else ["no 16-byte load"])
    for word, allowed in zip(("load", "store"), scalars_allowed(launch), strict=True):
        if row[f"{word}s_4"] > allowed:
            wrong.append(f"{row[f'{word}s_4']} narrow {word}s, {allowed} allowed")
        if not row[f"{word}s_16"] and not (launch.name == "_partial_sums_kernel" and word == "store"):
            wrong.append(f"no 16-byte {word}")
    return wrong


def main() -> None:
    given = command(__doc__, "output").parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        sys.exit("kernel_table: TRITON_INTERPRET=1 replaces the kernels by an interpreter; unset it to compile them")
    named: list[tuple[str, Launch]] = []
    for variant, call in variants():
        with recorded() as launches:
            call()
        named += [(variant, launch) for launch in launches]
    rows, wrong = Rows(given.output, dict), []
    missing = {function.__name__ for function in kernel_functions()} - {launch.name for _, launch in named}
    wrong += [f"{name} has no variant; call it in variants()" for name in sorted(missing)]
    for architecture in ARCHITECTURES:
        found = compiled([launch for _, launch in named], architecture)
        for (variant, launch), one in zip(named, found, strict=True):
            row: dict[str, Any] = {"kernel": launch.name, "variant": variant, "arch": f"sm_{architecture}"}
            row |= {"num_warps": launch.options["num_warps"], "programs": math.prod(launch.grid), **one}
            rows.add(row | dict(zip(TRAFFIC, traffic(launch), strict=True)))
            wrong += [f"{launch.name} {variant} sm_{architecture}: {w}" for w in complaints(launch, row)]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
