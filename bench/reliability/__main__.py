"""What breaks fastcloak: damaged cloaks, photos and networks, kills at random moments; what a cloak file reveals.

    python -m bench.reliability -o bench/results/reliability.csv          all parts at full length, hours on one core
    python -m bench.reliability -o FILE --quick --only cloaks save_kills  a tenth or less of the runs; some parts

Parts: cloaks (10,000 damaged files through `fastcloak.load` and `fastcloak info`), photos (2,000 through `read_photo`,
`protect` and `write_photo`), networks (700 ONNX files through `load_model` and one pass), save_kills (100 kill -9 while
cloaks are saved), fit_kills (100 kill -9 while a fit keeps checkpoints), reveals (what the masks of eight ORL people
tell a network that has photos of all forty; needs the extra demo).

Damaged files are read in a process of their own with a limit of memory, and a minute of the processor for each.
Columns: crashes, an exception of another kind than documented or the end of the process; hangs; memory, the limit was
met; wrong, a result that is not what it should be; typed_errors, the documented exceptions; exact_loads, the undamaged
thing or what the file really says; other_loads, another valid photo or network, which no hash protects. A file that
breaks something is kept in --failures. Rows of parts that are not run again stay in the output.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import logging
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import fastcloak
from bench.harness.machine import row_context
from bench.reliability import damage
from fastcloak import CloakFileError, FaceNotFoundError, PhotoError
from fastcloak.photos.files import read_photo, write_photo
from fastcloak.photos.inputs import load_faces
from fastcloak.system.packages import orl_folder

SEED = 0
TIME_LIMIT = 60.0
"""Seconds of the processor for one file; ten times as long on the clock, since the machine may be busy."""
MEMORY_LIMIT = {"cloaks": 0.5, "photos": 2.5, "networks": 2.0}
"""GiB above what the process has when it starts. A photo of the most pixels that Pillow allows takes 1.5."""
COLUMNS = ("runs", "crashes", "hangs", "memory", "wrong", "typed_errors", "exact_loads", "other_loads")
EXACT, TYPED, OTHER, MEMORY = "exact_loads", "typed_errors", "other_loads", "memory"


class WrongResult(Exception):
    """A reader returned something that it should not have."""


# One file through its reader ------------------------------------------------------------------------------------------


class CloakReader:
    """Damaged cloak files."""

    kinds = damage.CLOAKS

    def __init__(self, folder: Path) -> None:
        self.folder, self.originals = folder, damage.cloaks()
        self.raws = []
        for i, cloak in enumerate(self.originals):
            cloak.save(folder / f"original{i}.safetensors")
            self.raws.append(damage.in_order((folder / f"original{i}.safetensors").read_bytes()))

    def make(self, kind: str, rng: np.random.Generator) -> tuple[str, bytes, Any]:
        """Suffix, bytes, and what the file may load as."""
        raw, allowed = damage.cloak_case(kind, self.raws, self.originals, rng)
        return ".safetensors", raw, allowed

    def read(self, path: Path, allowed: list[damage.Allowed]) -> str:
        """The outcome.

        Raises:
            WrongResult: what was read is not what it should be.
        """
        try:
            cloak = fastcloak.load(path)
        except (CloakFileError, OSError) as error:
            _command_line(["info", str(path)], 1)
            return _typed(error)
        if not any(one.equals(cloak) for one in allowed):
            raise WrongResult("a cloak that the file may not load as")
        _command_line(["info", str(path)], 0)
        _command_line(["info", "--json", str(path)], 0)
        return EXACT


class PhotoReader:
    """Damaged photo files: read, protected where a face is found, written and read again."""

    kinds = damage.PHOTOS

    def __init__(self, folder: Path) -> None:
        self.folder, self.cloak = folder, damage.cloaks()[0]
        self.pixels = _portrait()
        self.files = damage.photo_files(self.pixels)

    def make(self, kind: str, rng: np.random.Generator) -> tuple[str, bytes, Any]:
        """Suffix, bytes, and what the file may load as."""
        return *damage.photo_case(kind, self.files, rng), None

    def read(self, path: Path, allowed: None) -> str:
        """The outcome.

        Raises:
            WrongResult: what was read is not what it should be.
        """
        try:
            photo = read_photo(path)
        except (PhotoError, OSError) as error:
            return _typed(error)
        pixels = photo.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise WrongResult(f"pixels {pixels.dtype} {pixels.shape}")
        if photo.alpha is not None and (photo.alpha.dtype != np.uint8 or photo.alpha.shape != pixels.shape[:2]):
            raise WrongResult(f"alpha {photo.alpha.dtype} {photo.alpha.shape} for {pixels.shape}")
        if photo.grey and not (pixels == pixels[..., :1]).all():
            raise WrongResult("a grey photo with colours")
        before = pixels.copy()
        try:
            protected = fastcloak.protect(pixels, self.cloak)
        except FaceNotFoundError:
            protected = pixels
        if not np.array_equal(before, pixels):
            raise WrongResult("protect changed its input")
        if protected.shape != pixels.shape or _largest_change(protected, pixels) > 8:
            raise WrongResult("protect broke its bound")
        out = path.with_suffix(".out.png")
        try:
            write_photo(replace(photo, pixels=protected), out)
            if not np.array_equal(read_photo(out).pixels, protected):
                raise WrongResult("PNG gave other pixels back")
        except PhotoError as error:
            raise WrongResult(f"read and not written: {error}") from error
        finally:
            out.unlink(missing_ok=True)
        return EXACT if np.array_equal(before, self.pixels) else OTHER


class NetworkReader:
    """Damaged ONNX files."""

    kinds = damage.NETWORKS

    def __init__(self, folder: Path) -> None:
        self.folder, self.raws = folder, damage.network_files()
        self.faces = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
        self.expected = []
        for i, raw in enumerate(self.raws):
            (folder / f"original{i}.onnx").write_bytes(raw)
            self.expected.append(self._embed(folder / f"original{i}.onnx"))

    def _embed(self, path: Path) -> torch.Tensor:
        with torch.no_grad():
            embeddings: torch.Tensor = fastcloak.load_model(path)(self.faces)
        return embeddings

    def make(self, kind: str, rng: np.random.Generator) -> tuple[str, bytes, Any]:
        """Suffix, bytes, and what the file may load as."""
        return ".onnx", damage.network_case(kind, self.raws, rng), None

    def read(self, path: Path, allowed: None) -> str:
        """The outcome.

        Raises:
            WrongResult: what was read is not what it should be.
        """
        try:
            surrogate = fastcloak.load_model(path)
        except (ValueError, OSError) as error:
            return _typed(error)
        with torch.no_grad():
            embeddings = surrogate(self.faces)
        if embeddings.shape != (2, surrogate.embedding_size) or not embeddings.is_floating_point():
            raise WrongResult(f"embeddings {embeddings.dtype} {list(embeddings.shape)}")
        return EXACT if any(torch.equal(embeddings, one) for one in self.expected) else OTHER


READERS: Mapping[str, type[CloakReader] | type[PhotoReader] | type[NetworkReader]] = {
    "cloaks": CloakReader,
    "photos": PhotoReader,
    "networks": NetworkReader,
}


def _typed(error: BaseException) -> str:
    """A documented error, unless what it hides is that memory ran out."""
    seen: BaseException | None = error
    while seen is not None:
        words = str(seen)
        if isinstance(seen, MemoryError) or "allocate memory" in words or "bad_alloc" in words:
            return MEMORY
        seen = seen.__cause__ or seen.__context__
    return TYPED


def _command_line(arguments: list[str], expected: int) -> None:
    from fastcloak.cli.main import main as fastcloak_main

    out, err = io.StringIO(), io.StringIO()
    # The command line flushes the real one.
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = fastcloak_main(arguments)
    if code != expected:
        raise WrongResult(f"fastcloak {' '.join(arguments)} gave {code}: {err.getvalue()}")
    shown = out.getvalue()
    if not shown.isascii() and not shown.replace("\n", "").isprintable():
        raise WrongResult("fastcloak info let control characters through")


def _largest_change(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> int:
    return int((np.maximum(a, b) - np.minimum(a, b)).max())


def _portrait() -> np.ndarray[Any, Any]:
    """A face of ORL, coloured, 184 x 224."""
    pixels = read_photo(orl_folder() / "s1" / "1.pgm").pixels
    larger = np.asarray(Image.fromarray(pixels).resize((184, 224), Image.Resampling.BICUBIC))
    coloured: np.ndarray[Any, Any] = (larger * np.array([1, 0.85, 0.7])).astype(np.uint8)
    return coloured


# Many files in processes that may die ---------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of the files of one kind.

    Attributes:
        counts: of each outcome in `COLUMNS`.
        seconds: in all.
        slowest: seconds of the slowest file.
        failures: what went wrong, a line each.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COLUMNS, 0))
    seconds: float = 0.0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, outcome: str, seconds: float, why: str = "") -> None:
        """One more file."""
        self.counts["runs"] += 1
        self.counts[outcome] += 1
        self.seconds += seconds
        self.slowest = max(self.slowest, seconds)
        if outcome not in (EXACT, TYPED, OTHER):
            self.failures.append(f"{outcome}: {why}")


Case = tuple[str, int]


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
        hidden = _typed(error)
        why = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"
        return (MEMORY if hidden == MEMORY else "crashes"), why


def _work(part: str, seed: int, cases: list[Case], memory: float, folder: str, answers: Any) -> None:
    """Child process: reads the cases one by one and says which it begins and what came of it."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    # Decoders in C complain there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reader = READERS[part](Path(folder))
    read_one(reader, cases[0], seed)  # loads what is loaded on first use, such as the detector
    resource.setrlimit(resource.RLIMIT_AS, (_virtual_bytes() + int(memory * 2**30), resource.RLIM_INFINITY))
    answers.send(None)
    for case in cases:
        began = time.perf_counter()
        answers.send((*read_one(reader, case, seed), time.perf_counter() - began))


def _virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _processor_seconds(process: int | None) -> float:
    """What a process has used of the processor; 0 once it ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fuzz(
    part: str, cases: list[Case], *, seed: int = SEED, time_limit: float = TIME_LIMIT, memory: float | None = None
) -> dict[str, Tally]:
    """Reads damaged files in a child process, and in another one after each crash or hang.

    Args:
        part: "cloaks", "photos" or "networks".
        cases: (kind, number) of each file.
        seed: decides the files, with the case.
        time_limit: seconds for one file.
        memory: GiB that reading may take.

    Returns:
        kind -> what came of its files.
    """
    tallies = {kind: Tally() for kind, _ in cases}
    spawning = multiprocessing.get_context("spawn")
    done = 0
    while done < len(cases):
        answers, childs_end = spawning.Pipe(duplex=False)
        limit = MEMORY_LIMIT[part] if memory is None else memory
        scratch = tempfile.TemporaryDirectory()  # of this process, which outlives the child
        arguments = (part, seed, cases[done:], limit, scratch.name, childs_end)
        child = spawning.Process(target=_work, args=arguments, daemon=True)
        child.start()
        childs_end.close()
        try:
            if not answers.poll(600):
                raise RuntimeError(f"the process that reads {part} did not start within 600 s")
            answers.recv()
            while done < len(cases):
                kind, number = cases[done]
                began, used = time.perf_counter(), _processor_seconds(child.pid)
                while not answers.poll(min(1.0, time_limit)):
                    waited = time.perf_counter() - began
                    if _processor_seconds(child.pid) - used > time_limit or waited > 10 * time_limit:
                        tallies[kind].add("hangs", waited, f"{kind} {number}: over {time_limit} s")
                        break
                else:
                    outcome, why, seconds = answers.recv()
                    tallies[kind].add(outcome, seconds, f"{kind} {number}: {why}")
                    done += 1
                    continue
                done += 1
                break
        except EOFError:
            child.join()
            if done < len(cases):
                kind, number = cases[done]
                tallies[kind].add("crashes", 0.0, f"{kind} {number}: the process ended with {child.exitcode}")
                done += 1
        finally:
            child.kill()
            child.join()
            answers.close()
            scratch.cleanup()
    return tallies


def cases_of(part: str, runs: int) -> list[Case]:
    """So many files, of the kinds in turns."""
    kinds = READERS[part].kinds
    return [(kinds[i % len(kinds)], i // len(kinds)) for i in range(runs)]


# Kills ----------------------------------------------------------------------------------------------------------------


def killed_after(seconds: float, work: Callable[[], None]) -> bool:
    """Runs `work` in a forked process and kills it with SIGKILL after a while; whether it was still at work."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise RuntimeError(f"the work failed with status {status}")
            return False
        time.sleep(min(0.01, max(0.0, deadline - time.perf_counter())))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def litter(folder: Path) -> list[Path]:
    """The temporary files that a kill left: all are hidden, and named .fastcloak-*.tmp."""
    return sorted(folder.glob(".fastcloak-*.tmp"))


def save_kills(folder: Path, kills: int, seed: int = SEED) -> tuple[Tally, int]:
    """Kills a process that saves one cloak over the other, at random moments.

    Returns:
        What came of it (exact_loads: the file was one of the two cloaks, whole), and how many temporary files are left.
    """
    rng = np.random.default_rng(seed)
    tally, path, originals = Tally(), folder / "me.safetensors", damage.cloaks()
    allowed = [damage.Allowed.of(one.delta, one.eps, one.info) for one in originals]
    originals[0].save(path)

    def save_for_ever() -> None:
        while True:
            for cloak in originals[::-1]:
                cloak.save(path)

    for kill in range(kills):
        began = time.perf_counter()
        killed_after(float(rng.uniform(0, 0.05)), save_for_ever)
        others = {file.name for file in folder.iterdir()} - {path.name, *(file.name for file in litter(folder))}
        try:
            whole = any(one.equals(fastcloak.load(path)) for one in allowed)
            outcome, why = (EXACT, "") if whole and not others else ("wrong", f"files {others}")
        except (ValueError, OSError) as error:
            outcome, why = "wrong", str(error)
        tally.add(outcome, time.perf_counter() - began, f"kill {kill}: {why}")
    return tally, len(litter(folder))


def small_network() -> torch.nn.Module:
    """112 px -> 16 numbers in less than a millisecond."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 8, 7, stride=4), torch.nn.PReLU(8), torch.nn.Flatten(), torch.nn.Linear(5832, 16)]
        return torch.nn.Sequential(*layers).eval()


def fit_kills(
    folder: Path, kills: int, seed: int = SEED, every_step: bool = False, steps: int | None = None, before: float = 0.6
) -> tuple[Tally, int]:
    """Kills fits with a checkpoint at random moments, and goes on until one is done.

    Args:
        folder: for checkpoints, an empty one.
        kills: how many, at least: the last fit is brought to its end.
        seed: of the moments.
        every_step: save the state after every step, so that many kills meet a write; else as often as fits do.
        steps: of the fit; 60 with every_step, else 1,200.
        before: share of a fit's time within which the kills come. Below 1 only a fit that resumes comes to its end;
            where setting up takes most of the time, as with few steps, none would.

    Returns:
        What came of each kill (exact_loads: the cloak in the end was bit for bit that of a fit without a kill), and how
        many temporary files are left.
    """
    torch.set_num_threads(1)  # a forked child would wait for the threads of OpenMP, which stay in its parent
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    coarse = torch.rand(4, 3, 14, 14, generator=generator)
    faces = torch.nn.functional.interpolate(coarse, (112, 112), mode="bilinear")
    steps = steps or (60 if every_step else 1200)
    options: dict[str, Any] = {"preset": "plain", "decay": 0.9, "average": 0.5, "augment": "flip", "inner_steps": 1}

    def learn(checkpoint: Path | None, result: Path) -> None:
        if every_step:
            module: Any = import_module("fastcloak.checkpoint")
            module.SECONDS, module.SHARE = 0.0, 1.0
        kept: dict[str, Any] = {} if checkpoint is None else {"checkpoint": checkpoint}
        fastcloak.fit(faces, small_network(), steps=steps, **kept, **options).save(result)

    expected, done = folder / "expected.safetensors", folder / "done.safetensors"
    killed_after(3600, lambda: learn(None, expected))
    began = time.perf_counter()
    killed_after(3600, lambda: learn(folder / "timed", done))
    whole = time.perf_counter() - began
    tally, left, rounds = Tally(), 0, 0
    while tally.counts["runs"] < kills:
        checkpoint, spent = folder / f"checkpoint{rounds}", []
        done.unlink(missing_ok=True)
        while True:
            began, wait = time.perf_counter(), float(rng.uniform(0, before * whole))
            killed = killed_after(wait, lambda checkpoint=checkpoint: learn(checkpoint, done))  # type: ignore[misc]
            if not killed:
                break
            spent.append(time.perf_counter() - began)
            if len(spent) > 200:
                raise RuntimeError("200 kills, and the fit is not done: nothing is kept")
        same = fastcloak.load(done).delta.equal(fastcloak.load(expected).delta)
        for i, seconds in enumerate(spent):
            tally.add(EXACT if same else "wrong", seconds, f"round {rounds}, kill {i}: another cloak")
        left += len(litter(checkpoint))
        rounds += 1
    return tally, left


# What a cloak file reveals --------------------------------------------------------------------------------------------


def reveals(people: int = 8, learn: int = 6) -> list[dict[str, object]]:
    """How well the owner of a cloak is found among 40 people of ORL, by someone who has photos of all of them.

    `people` cloaks are learnt on SFace (preset fast) from `learn` photos each. The finder has the other photos of these
    people, and all of the rest. Ways to look, each on SFace (learnt on it) and dlib: "mask k" is the similarity of the
    picture 0.5 + k delta to each person's mean feature; "least alike k" the same, lowest first, since a mask leads away
    from its person; "effect" is by how much the mask turns each person's photos, most turned first.

    Returns:
        Rows with the mean rank of the owner (chance: 20.5), how often it was first (chance: 1 in 40), and all ranks.
    """
    folders = sorted((folder for folder in orl_folder().iterdir() if folder.is_dir()), key=lambda f: int(f.name[1:]))
    faces = {folder.name: load_faces(folder) for folder in folders}
    owners = [folder.name for folder in folders[:: len(folders) // people]][:people]
    surrogate = fastcloak.load_model("sface")
    masks = {name: fastcloak.fit(faces[name][:learn], surrogate).delta for name in owners}
    rows: list[dict[str, object]] = []
    for network in ("sface", "dlib"):
        model = fastcloak.load_model(network)

        def embed(pictures: torch.Tensor, model: Any = model) -> torch.Tensor:
            with torch.no_grad():
                return torch.nn.functional.normalize(model(pictures.clamp(0, 1)))

        seen = {name: embed(photos) for name, photos in faces.items()}
        ranks: dict[str, list[int]] = {}
        for owner, delta in masks.items():
            clean = {name: features[learn:] if name in owners else features for name, features in seen.items()}
            centers = torch.nn.functional.normalize(torch.stack([one.mean(0) for one in clean.values()]))
            mine = list(faces).index(owner)
            for gain in (1, 4, 16, -4, -16):
                scores = centers @ embed(0.5 + gain * delta[None])[0]
                ranks.setdefault(f"mask {gain}", []).append(_rank(scores, mine))
                ranks.setdefault(f"least alike {gain}", []).append(_rank(-scores, mine))
            moved = [
                1 - (clean[n] * embed(photos[-len(clean[n]) :] + delta)).sum(1).mean() for n, photos in faces.items()
            ]
            ranks.setdefault("effect", []).append(_rank(torch.stack(moved), mine))
        for way, found in ranks.items():
            mean, first = sum(found) / len(found), sum(rank == 1 for rank in found)
            rows.append({"network": network, "way": way, "mean_rank": mean, "first": first, "ranks": found})
    return rows


def _rank(scores: torch.Tensor, mine: int) -> int:
    return 1 + int((scores > scores[mine]).sum())


# The command ----------------------------------------------------------------------------------------------------------

RUNS = {
    "cloaks": (10_000, 500),
    "photos": (2_000, 90),
    "networks": (700, 70),
    "save_kills": (100, 10),
    "fit_kills": (100, 6),
}
"""Part -> (runs, with --quick)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=[*RUNS, "reveals"], default=[*RUNS, "reveals"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--failures", type=Path, default=Path("reliability-failures"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    failed = False
    for part in arguments.only:
        began = time.perf_counter()
        if part == "reveals":
            _write_rows(arguments.output.with_name("reliability_reveals.csv"), "reveals", reveals())
            continue
        runs = RUNS[part][arguments.quick]
        tallies, notes = (fuzz(part, cases_of(part, runs)), "") if part in READERS else _killed(part, runs)
        rows = []
        for kind, tally in tallies.items():
            rows.append(
                {"kind": kind, **tally.counts, "seconds": tally.seconds, "slowest": tally.slowest, "seed": SEED}
                | {"notes": notes}
            )
            failed |= bool(tally.failures)
            for line in tally.failures:
                print(f"{part}: {line}", file=sys.stderr)
            if part in READERS:
                _keep(arguments.failures, part, tally)
        _write_rows(arguments.output, part, rows)
        total = {name: sum(tally.counts[name] for tally in tallies.values()) for name in COLUMNS}
        print(part, total, f"{time.perf_counter() - began:.0f} s", notes, flush=True)
    sys.exit(failed)


def _killed(part: str, kills: int) -> tuple[dict[str, Tally], str]:
    ways: dict[str, Callable[[Path], tuple[Tally, int]]] = {"SIGKILL": lambda folder: save_kills(folder, kills)}
    if part == "fit_kills":
        ways = {
            "saving every step": lambda folder: fit_kills(folder, kills // 2, every_step=True),
            "saving as usual": lambda folder: fit_kills(folder, kills // 2),
        }
    tallies, left = {}, 0
    for way, kill in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            tallies[way], more = kill(Path(folder))
        left += more
    return tallies, f"{left} temporary files left"


def _keep(folder: Path, part: str, tally: Tally) -> None:
    """Writes the files that broke something, to be looked at."""
    if not tally.failures:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        reader = READERS[part](Path(scratch))
        for line in tally.failures:
            kind, _, number = line.split(": ")[1].rpartition(" ")
            suffix, raw, _ = reader.make(kind, case_random(SEED, (kind, int(number))))
            name = f"{part}-{kind.replace(' ', '_')}-{number}"
            (folder / f"{name}{suffix}").write_bytes(raw)
            (folder / f"{name}.txt").write_text(line + "\n")


def _write_rows(output: Path, part: str, rows: list[dict[str, Any]]) -> None:
    """Writes the rows of one part; those of other parts stay."""
    kept: list[dict[str, Any]] = []
    if output.exists():
        with open(output, newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["part"] != part]
    context = row_context("cpu")
    new: list[dict[str, Any]] = [{"part": part, **row, **context} for row in rows]
    for row in new:
        row.update({key: f"{value:.4g}" for key, value in row.items() if isinstance(value, float)})
    columns = list(dict.fromkeys(key for row in [*new, *kept] for key in row))
    with open(output, "w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows([*kept, *new])


if __name__ == "__main__":
    main()
