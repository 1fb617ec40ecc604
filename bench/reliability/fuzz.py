"""Damaged files, each read in a process that may die, with limits of memory and time."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import resource
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import fastcloak
from bench.reliability import damage
from fastcloak import CloakFileError, FaceNotFoundError, PhotoError
from fastcloak.cli.main import main as fastcloak_main
from fastcloak.photos.files import read_photo, write_photo
from fastcloak.system.packages import orl_folder

TIME_LIMIT = 60.0
"""Seconds of the processor for one file; ten times as long on the clock, since the machine may be busy."""
MEMORY_LIMIT = {"cloaks": 0.5, "photos": 2.5, "networks": 2.0}
"""GiB above what the process has when it starts. A photo of the most pixels that Pillow allows takes 1.5."""
OUTCOMES = ("crashes", "hangs", "memory", "wrong", "typed_errors", "exact_loads", "other_loads")
EXACT, TYPED, OTHER, MEMORY = "exact_loads", "typed_errors", "other_loads", "memory"
Case = tuple[str, int]


class WrongResult(Exception):
    """A reader returned something that it should not have."""


class CloakReader:
    """Damaged cloak files: `make` gives suffix, bytes and what the file may load as, `read` the outcome."""

    kinds = damage.CLOAKS

    def __init__(self, folder: Path) -> None:
        self.folder, self.originals = folder, damage.cloaks()
        self.raws = []
        for i, cloak in enumerate(self.originals):
            cloak.save(folder / f"original{i}.safetensors")
            self.raws.append(damage.in_order((folder / f"original{i}.safetensors").read_bytes()))

    def make(self, kind: str, rng: np.random.Generator) -> tuple[str, bytes, Any]:
        return ".safetensors", *damage.cloak_case(kind, self.raws, self.originals, rng)

    def read(self, path: Path, allowed: list[damage.Allowed]) -> str:
        try:
            cloak = fastcloak.load(path)
        except (CloakFileError, OSError) as error:
            command_line(["info", str(path)], 1)
            return outcome_of(error)
        if not any(one.equals(cloak) for one in allowed):
            raise WrongResult("a cloak that the file may not load as")
        command_line(["info", str(path)], 0)
        command_line(["info", "--json", str(path)], 0)
        return EXACT


class PhotoReader:
    """Damaged photo files: read, protected where a face is found, written and read again."""

    kinds = damage.PHOTOS

    def __init__(self, folder: Path) -> None:
        self.folder, self.cloak = folder, damage.cloaks()[0]
        portrait = Image.fromarray(read_photo(orl_folder() / "s1" / "1.pgm").pixels)
        larger = np.asarray(portrait.resize((184, 224), Image.Resampling.BICUBIC))
        self.pixels = (larger * np.array([1, 0.85, 0.7])).astype(np.uint8)
        self.files = damage.photo_files(self.pixels)

    def make(self, kind: str, rng: np.random.Generator) -> tuple[str, bytes, Any]:
        return *damage.photo_case(kind, self.files, rng), None

    def read(self, path: Path, allowed: None) -> str:
        try:
            photo = read_photo(path)
        except (PhotoError, OSError) as error:
            return outcome_of(error)
        pixels = photo.pixels
        expect(pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size > 0, "pixels")
        alpha = photo.alpha
        expect(alpha is None or (alpha.dtype == np.uint8 and alpha.shape == pixels.shape[:2]), "alpha")
        expect(not photo.grey or bool((pixels == pixels[..., :1]).all()), "a grey photo with colours")
        before = pixels.copy()
        try:
            protected = fastcloak.protect(pixels, self.cloak)
        except FaceNotFoundError:
            protected = pixels
        expect(np.array_equal(before, pixels), "protect changed its input")
        change = np.maximum(protected, pixels) - np.minimum(protected, pixels)
        expect(protected.shape == pixels.shape and change.max() <= 8, "protect broke its bound")
        out = path.with_suffix(".out.png")
        try:
            write_photo(replace(photo, pixels=protected), out)
            expect(np.array_equal(read_photo(out).pixels, protected), "PNG gave other pixels back")
        except PhotoError as error:
            raise WrongResult(f"read and not written: {error}") from error
        finally:
            out.unlink(missing_ok=True)
        return EXACT if np.array_equal(before, self.pixels) else OTHER


class NetworkReader:
    """Damaged ONNX files: loaded, and one pass."""

    kinds = damage.NETWORKS

    def __init__(self, folder: Path) -> None:
        self.folder, self.raws = folder, damage.network_files()
        self.faces = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
        self.expected = []
        for i, raw in enumerate(self.raws):
            (folder / f"original{i}.onnx").write_bytes(raw)
            with torch.no_grad():
                self.expected.append(fastcloak.load_model(folder / f"original{i}.onnx")(self.faces))

    def make(self, kind: str, rng: np.random.Generator) -> tuple[str, bytes, Any]:
        return ".onnx", damage.network_case(kind, self.raws, rng), None

    def read(self, path: Path, allowed: None) -> str:
        try:
            surrogate = fastcloak.load_model(path)
        except (ValueError, OSError) as error:
            return outcome_of(error)
        with torch.no_grad():
            embeddings = surrogate(self.faces)
        shape = (2, surrogate.embedding_size)
        expect(embeddings.shape == shape and embeddings.is_floating_point(), f"embeddings {embeddings.dtype}")
        return EXACT if any(torch.equal(embeddings, one) for one in self.expected) else OTHER


READERS: dict[str, type[CloakReader | PhotoReader | NetworkReader]] = {
    "cloaks": CloakReader,
    "photos": PhotoReader,
    "networks": NetworkReader,
}


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise WrongResult(otherwise)


def outcome_of(error: BaseException) -> str:
    """A documented error, unless what it hides is that memory ran out."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or "allocate memory" in str(seen) or "bad_alloc" in str(seen):
            return MEMORY
        seen = seen.__cause__ or seen.__context__
    return TYPED


def command_line(arguments: list[str], expected: int) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = fastcloak_main(arguments)
    expect(code == expected, f"fastcloak {' '.join(arguments)} gave {code}: {err.getvalue()}")
    shown = out.getvalue()
    expect(shown.isascii() or shown.replace("\n", "").isprintable(), "fastcloak info let control characters through")


@dataclass
class Tally:
    """What came of the files of one kind: counts of `OUTCOMES`, seconds in all and of the slowest, and failures."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("runs", *OUTCOMES), 0))
    seconds: float = 0.0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, outcome: str, seconds: float, why: str = "") -> None:
        self.counts["runs"] += 1
        self.counts[outcome] += 1
        self.seconds += seconds
        self.slowest = max(self.slowest, seconds)
        if outcome not in (EXACT, TYPED, OTHER):
            self.failures.append(f"{outcome}: {why}")


def cases_of(part: str, runs: int) -> list[Case]:
    kinds = READERS[part].kinds
    return [(kinds[i % len(kinds)], i // len(kinds)) for i in range(runs)]


def case_random(seed: int, case: Case) -> np.random.Generator:
    """What decides a damaged file: any of them can be made again alone."""
    return np.random.default_rng([seed, case[1], *case[0].encode()])


def read_one(reader: Any, case: Case, seed: int) -> tuple[str, str]:
    """(outcome, what went wrong) of one file."""
    suffix, raw, allowed = reader.make(case[0], case_random(seed, case))
    path = reader.folder / f"case{suffix}"
    path.write_bytes(raw)
    try:
        return reader.read(path, allowed), ""
    except WrongResult as error:
        return "wrong", str(error)
    except Exception as error:
        why = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"
        return (MEMORY if outcome_of(error) == MEMORY else "crashes"), why


def work(part: str, seed: int, cases: list[Case], memory: float, folder: str, answers: Any) -> None:
    """Child process: reads the cases one by one and sends what came of each."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    # Decoders in C complain there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reader = READERS[part](Path(folder))
    read_one(reader, cases[0], seed)  # loads what is loaded on first use, such as the detector
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(memory * 2**30), resource.RLIM_INFINITY))
    answers.send(None)
    for case in cases:
        began = time.perf_counter()
        answers.send((*read_one(reader, case, seed), time.perf_counter() - began))


def processor_seconds(process: int | None) -> float:
    """What a process has used of the processor; 0 once it ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def answer_of(child: Any, answers: Any, time_limit: float) -> tuple[str, str, float]:
    """What the child says of one file: outcome, what went wrong, seconds.

    Raises:
        EOFError: the child has ended.
    """
    began, used = time.perf_counter(), processor_seconds(child.pid)
    while not answers.poll(min(1.0, time_limit)):
        waited = time.perf_counter() - began
        if processor_seconds(child.pid) - used > time_limit or waited > 10 * time_limit:
            return "hangs", f"over {time_limit} s", waited
    answer: tuple[str, str, float] = answers.recv()
    return answer


def fuzz(
    part: str,
    cases: list[Case],
    *,
    seed: int = 0,
    time_limit: float = TIME_LIMIT,
    memory: float | None = None,
    child: Callable[..., None] = work,
) -> dict[str, Tally]:
    """Read damaged files in a child process, and in another one after each crash or hang; kind -> what came of them.

    A case is a (kind, number), and decides its file together with the seed. `memory` is in GiB.
    """
    tallies, spawning = {kind: Tally() for kind, _ in cases}, multiprocessing.get_context("spawn")
    limit = MEMORY_LIMIT[part] if memory is None else memory
    done = 0

    def add(outcome: str, why: str, seconds: float) -> None:
        nonlocal done
        kind, number = cases[done]
        tallies[kind].add(outcome, seconds, f"{kind} {number}: {why}")
        done += 1

    while done < len(cases):
        answers, childs_end = spawning.Pipe(duplex=False)
        scratch = tempfile.TemporaryDirectory()  # of this process, which outlives the child
        arguments = (part, seed, cases[done:], limit, scratch.name, childs_end)
        process = spawning.Process(target=child, args=arguments, daemon=True)
        process.start()
        childs_end.close()
        try:
            if not answers.poll(600):
                raise RuntimeError(f"the process that reads {part} did not start within 600 s")
            answers.recv()
            outcome = ""
            while done < len(cases) and outcome != "hangs":
                outcome, why, seconds = answer_of(process, answers, time_limit)
                add(outcome, why, seconds)
        except EOFError:
            process.join()
            add("crashes", f"the process ended with {process.exitcode}", 0.0)
        finally:
            process.kill()
            process.join()
            answers.close()
            scratch.cleanup()
    return tallies
