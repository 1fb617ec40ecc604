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

import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.harness.command import command
from bench.harness.machine import row_context
from bench.harness.rows import Rows
from bench.reliability.fuzz import READERS, Tally, case_random, cases_of, fuzz
from bench.reliability.kills import fit_kills, save_kills
from bench.reliability.reveals import reveals

SEED = 0
RUNS = {
    "cloaks": (10_000, 500),
    "photos": (2_000, 90),
    "networks": (700, 70),
    "save_kills": (100, 10),
    "fit_kills": (100, 6),
}
"""Part -> (runs, with --quick)."""


def killed(part: str, kills: int) -> tuple[dict[str, Tally], str]:
    ways: Mapping[str, Any] = {"SIGKILL": partial(save_kills, kills=kills)}
    if part == "fit_kills":
        ways = {
            "saving every step": partial(fit_kills, kills=kills // 2, every_step=True),
            "saving as usual": partial(fit_kills, kills=kills // 2),
        }
    tallies, left = {}, 0
    for way, kill in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            tallies[way], more = kill(Path(folder))
        left += more
    return tallies, f"{left} temporary files left"


def keep_failures(folder: Path, part: str, failures: Iterable[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        reader = READERS[part](Path(scratch))
        for line in failures:
            folder.mkdir(parents=True, exist_ok=True)
            kind, _, number = line.split(": ")[1].rpartition(" ")
            suffix, raw, _ = reader.make(kind, case_random(SEED, (kind, int(number))))
            name = f"{part}-{kind.replace(' ', '_')}-{number}"
            (folder / f"{name}{suffix}").write_bytes(raw)
            (folder / f"{name}.txt").write_text(line + "\n")


def write_part(output: Path, part: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows of one part; those of other parts stay."""
    table = Rows(output, partial(row_context, "cpu"), append=True)
    table.rows = [row for row in table.rows if row["part"] != part]
    for row in rows:
        table.add({"part": part, **row})


def main() -> None:
    parser = command(__doc__, "output")
    parser.add_argument("--only", nargs="+", choices=[*RUNS, "reveals"], default=[*RUNS, "reveals"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--failures", type=Path, default=Path("reliability-failures"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    failures: list[str] = []
    for part in given.only:
        began = time.perf_counter()
        if part == "reveals":
            write_part(given.output.with_name("reliability_reveals.csv"), part, reveals())
            continue
        runs = RUNS[part][given.quick]
        tallies, notes = (fuzz(part, cases_of(part, runs)), "") if part in READERS else killed(part, runs)
        rows = [
            {"kind": kind, **tally.counts, "seconds": tally.seconds, "slowest": tally.slowest}
            for kind, tally in tallies.items()
        ]
        write_part(given.output, part, [{**row, "seed": SEED, "notes": notes} for row in rows])
        broken = [line for tally in tallies.values() for line in tally.failures]
        print("".join(f"{part}: {line}\n" for line in broken), end="", file=sys.stderr)
        if broken and part in READERS:
            keep_failures(given.failures, part, broken)
        failures += broken
        total = {name: sum(tally.counts[name] for tally in tallies.values()) for name in Tally().counts}
        print(part, total, f"{time.perf_counter() - began:.0f} s", notes, flush=True)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
