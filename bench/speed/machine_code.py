"""What a compiled kernel really does, read from its machine code: registers, spills, memory accesses and barriers.

Triton's wheel ships the assembler and the disassembler, so this needs no GPU. The disassembler takes half a second to
start, so all kernels of an architecture are assembled into one file.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"

HEADER = re.compile(r"\s*\.(version|target|address_size|extern)\b")
ENTRY = re.compile(r"\.visible \.entry (\w+)\(")
FUNCTION = re.compile(r"^\.text\.(\w+):$")
LABEL = re.compile(r"^(\.L_\w+):$")
# An instruction at its address, maybe under a predicate: "/*05e0*/ @!P0 BRA `(.L_x_1) ;"
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(@\S+\s+)?([A-Z]\w*)((?:\.\w+)*)([^;]*)")
# "Compiling entry function 'kernel_0' ..", "0 bytes stack frame, 0 bytes spill stores, ..", "Used 32 registers"
REPORT = re.compile(
    r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Instruction:
    """One machine instruction: name, what follows it after dots, and how many loops it is inside."""

    name: str
    suffixes: tuple[str, ...]
    loops: int

    @property
    def bits(self) -> int:
        """Width of a memory access."""
        widths = [int(suffix.lstrip("US")) for suffix in self.suffixes if re.fullmatch(r"[US]?(8|16|64|128)", suffix)]
        return widths[0] if widths else 32


@dataclass(frozen=True)
class MachineCode:
    """One kernel for one architecture."""

    registers: int
    stack_bytes: int
    spill_bytes: int
    instructions: tuple[Instruction, ...]

    @cached_property
    def loads(self) -> tuple[Instruction, ...]:
        """Of global memory."""
        return self._named("LDG")

    @cached_property
    def stores(self) -> tuple[Instruction, ...]:
        """To global memory."""
        return self._named("STG")

    @cached_property
    def barriers(self) -> tuple[Instruction, ...]:
        """At which the warps of a program wait for each other."""
        return self._named("BAR")

    @property
    def waits_for_stores(self) -> int:
        """How often loads follow stores of global memory: neither compiler can know that they do not read the same.

        A loop that both loads and stores counts once, since its next pass loads behind the stores of the one before.
        """
        waits, stored = 0, False
        for instruction in self.instructions:
            if instruction.name == "LDG" and stored:
                waits += 1
            if instruction.name in ("LDG", "STG"):
                stored = instruction.name == "STG"
        return waits + (any(one.loops for one in self.loads) and any(one.loops for one in self.stores))

    def _named(self, name: str) -> tuple[Instruction, ...]:
        return tuple(instruction for instruction in self.instructions if instruction.name == name)


def machine_codes(ptx: Sequence[str], architecture: int, fusion: bool) -> list[MachineCode]:
    """What these kernels become on sm_80 or sm_90a; `fusion`: the assembler may fuse a product and a sum."""
    with tempfile.TemporaryDirectory() as scratch:
        source, binary = Path(scratch, "kernels.ptx"), Path(scratch, "kernels.cubin")
        source.write_text(_one_module(ptx))
        name = f"sm_{architecture}{'a' if architecture >= 90 else ''}"
        options = ["-v", f"--gpu-name={name}", *([] if fusion else ["--fmad=false"])]
        report = _run(_assembler(), *options, str(source), "-o", str(binary))
        listing = _run("nvdisasm", "-c", str(binary))
    resources = {found[0]: [int(number) for number in found[1:]] for found in REPORT.findall(report)}
    bodies = instructions_of(listing)
    codes = []
    for kernel in _names(len(ptx)):
        if kernel not in resources or kernel not in bodies:
            raise ValueError(f"expected {kernel} in the report and the listing of {name}, got {report!r}")
        stack, stores, loads, registers = resources[kernel]
        codes.append(MachineCode(registers, stack, stores + loads, bodies[kernel]))
    return codes


def _names(count: int) -> list[str]:
    return [f"kernel_{position}" for position in range(count)]


def _one_module(ptx: Sequence[str]) -> str:
    """One PTX file of many: the header once, then every kernel under a name of its own, without debug information."""
    header: dict[str, None] = {}
    bodies = []
    for name, text in zip(_names(len(ptx)), ptx, strict=True):
        lines = [line for line in text.splitlines() if not line.startswith("\t.loc\t")]
        entry = next(position for position, line in enumerate(lines) if ENTRY.search(line))
        header |= dict.fromkeys(
            line for line in lines[:entry] if re.match(r"\s*\.(version|target|address|extern)", line)
        )
        kernel = ENTRY.search(lines[entry])
        assert kernel
        bodies.append(re.sub(rf"\b{kernel[1]}\b", name, "\n".join(lines[entry : lines.index("}") + 1])))
    return "\n".join([*header, *bodies, ""])


def _assembler() -> str:
    # Triton 3.9 emits a PTX version that only its assembler for Blackwell reads.
    new = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 9)
    return "ptxas-blackwell" if new else "ptxas"


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([str(TOOLS / tool), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tool} failed with {done.returncode}: {done.stderr[:2000]}")
    return done.stdout + done.stderr


@dataclass(frozen=True)
class _Line:
    name: str
    suffixes: tuple[str, ...]
    always: bool  # under no predicate
    target: str | None


def instructions_of(listing: str) -> dict[str, tuple[Instruction, ...]]:
    """The kernels of a disassembled file by name."""
    found: dict[str, list[_Line]] = {}
    labels: dict[str, int] = {}
    lines: list[_Line] = []
    for line in listing.splitlines():
        if function := FUNCTION.match(line):
            lines = found.setdefault(function[1], [])
        elif label := LABEL.match(line):
            labels[label[1]] = len(lines)
        elif instruction := INSTRUCTION.match(line):
            _, predicate, name, suffixes, operands = instruction.groups()
            target = re.search(r"`\((\.L_\w+)\)", operands)
            always = not predicate and (name != "BRA" or operands.strip().startswith("`"))
            lines.append(_Line(name, tuple(suffixes.split(".")[1:]), always, target and target[1]))
    return {kernel: _looped(lines, labels) for kernel, lines in found.items()}


def _looped(lines: list[_Line], labels: dict[str, int]) -> tuple[Instruction, ...]:
    """The instructions with the number of loops around each: natural loops, since cold code jumps back as well."""
    ends_block = [line.target is not None or line.name in ("EXIT", "RET") for line in lines]
    targets = {labels[line.target] for line in lines if line.target}
    behind = {at + 1 for at, ends in enumerate(ends_block) if ends}
    starts = sorted(start for start in {0, *targets, *behind} if start < len(lines))
    block_of = {start: block for block, start in enumerate(starts)}
    ends = [*starts[1:], len(lines)]
    after: list[set[int]] = []
    for end in ends:
        last = lines[end - 1]
        # Where threads meet again is a target as well: of BSSY, which itself goes on.
        follows = {block_of[labels[last.target]]} if last.target else set()
        if end < len(lines) and not (last.always and last.name in ("BRA", "EXIT", "RET")):
            follows.add(block_of[end])
        after.append(follows)
    reached, left = {0}, [0]
    while left:
        new = after[left.pop()] - reached
        reached |= new
        left += new
    before = [{one for one in reached if block in after[one]} for block in range(len(starts))]

    dominators = [{0}, *(set(reached) for _ in starts[1:])]
    changed = True
    while changed:
        changed = False
        for block in sorted(reached - {0}):
            common = {block} | set.intersection(*(dominators[one] for one in before[block]))
            changed |= common != dominators[block]
            dominators[block] = common

    depth = [0] * len(starts)
    heads: dict[int, set[int]] = {}
    for block in reached:
        for head in after[block] & dominators[block]:
            # What reaches the backward branch without passing the head.
            body, left = heads.setdefault(head, {head}), [block]
            while left:
                if (one := left.pop()) not in body:
                    body.add(one)
                    left += before[one]
    for body in heads.values():
        for block in body:
            depth[block] += 1
    return tuple(
        Instruction(line.name, line.suffixes, depth[block])
        for block, (start, end) in enumerate(zip(starts, ends, strict=True))
        for line in lines[start:end]
    )
