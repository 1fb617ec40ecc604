"""Kills a fit at random moments and goes on with it, again and again: python -m tests.kills --kills 100

Prints JSON: how many fits were killed how often, and whether each gave the cloaks of one that was not, bit for bit.
Children are forked, so that a kill costs the time of a fit and not that of importing PyTorch.
"""

import argparse
import json
import random
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

import fastcloak
from bench.reliability.kills import killed_after
from fastcloak import fit_many
from fastcloak.fitting import checkpoint
from tests.conftest import TinyNet, smooth_faces

PEOPLE = {"Ann": 4, "ann": 4, "../bob": 5}
OPTIONS = {
    "device": "cpu",
    "dtype": "float32",
    "steps": 12,
    "decay": 0.9,
    "average": 0.5,
    "dropout": 0.1,
    "augment": "flip,color",
    "inner_steps": 2,
}


def learn(folder, output):
    """The fit that is killed: people in passes of two and one; saves the state after every step."""
    checkpoint.SECONDS, checkpoint.SHARE = 0.0, float("inf")
    people = {name: smooth_faces(photos, seed=i) for i, (name, photos) in enumerate(PEOPLE.items())}
    cloaks = fit_many(people, TinyNet(), checkpoint=folder, memory_budget=10**9, **OPTIONS)
    for i, cloak in enumerate(cloaks.values()):
        cloak.save(output / f"{i}.safetensors")


def whole_files(folder, expected):
    """Every file that a kill left under its own name is whole, and finished cloaks are those of a fit left alone."""
    if (folder / checkpoint.MARKER).exists():
        json.loads((folder / checkpoint.MARKER).read_bytes())
    return all(
        any(torch.equal(fastcloak.load(path).delta, cloak.delta) for cloak in expected)
        for path in folder.glob("person-*.safetensors")
    )


def cloaks_in(output):
    return [fastcloak.load(output / f"{i}.safetensors") for i in range(len(PEOPLE))]


def same(a, b):
    return all(
        torch.equal(one.delta, other.delta) and one.info["losses"] == other.info["losses"]
        for one, other in zip(a, b, strict=True)
    )


def run(kills, seed):
    """Kills fits so often; returns what `main` prints."""
    draw = random.Random(seed)
    told = {"kills": 0, "fits": 0, "runs": 0, "equal": True, "whole": True, "litter": []}
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain"
        plain.mkdir()
        began = time.monotonic()
        assert not killed_after(600, partial(learn, plain / "checkpoint", plain))
        seconds = time.monotonic() - began
        expected = cloaks_in(plain)
        while told["kills"] < kills:
            output = Path(scratch) / str(told["fits"])
            output.mkdir()
            folder = output / "checkpoint"
            finished = False
            while not finished:
                enough = told["kills"] >= kills
                wait = 600 if enough else draw.uniform(0, 1.2 * seconds)
                finished = not killed_after(wait, partial(learn, folder, output))
                told["runs"] += 1
                told["kills"] += not finished
                told["whole"] &= not folder.exists() or whole_files(folder, expected)
            told["fits"] += 1
            told["equal"] &= same(cloaks_in(output), expected)
            told["litter"] += [path.name for path in folder.glob(".*")]
    return told


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how often to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(run(arguments.kills, arguments.seed)))


if __name__ == "__main__":
    main()
