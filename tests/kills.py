"""Kills fits at random moments and resumes them, again and again: python -m tests.kills --kills 100

Prints JSON: how many fits were killed how often, and whether each gave the cloaks of an undisturbed one, bit for bit.
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
from fastcloak.fitting import checkpoint, claim
from tests.conftest import TinyNet, smooth_faces

PEOPLE = {"Ann": 4, "ann": 4, "../bob": 5}
OPTIONS = {"device": "cpu", "dtype": "float32", "steps": 12, "decay": 0.9, "average": 0.5, "dropout": 0.1}
OPTIONS |= {"augment": "flip,color", "inner_steps": 2}


def learn(folder, output):
    """The fit that is killed: people in passes of two and one; saves the state after every step."""
    checkpoint.SECONDS, checkpoint.SHARE = 0.0, float("inf")
    people = {name: smooth_faces(photos, seed=i) for i, (name, photos) in enumerate(PEOPLE.items())}
    cloaks = fastcloak.fit_many(people, TinyNet(), checkpoint=folder, memory_budget=10**9, **OPTIONS)
    for i, cloak in enumerate(cloaks.values()):
        cloak.save(output / f"{i}.safetensors")


def cloaks_in(output):
    cloaks = [fastcloak.load(output / f"{i}.safetensors") for i in range(len(PEOPLE))]
    return [(cloak.delta.numpy().tobytes(), cloak.info["losses"]) for cloak in cloaks]


def is_whole(folder, expected):
    """Whether every file that a kill left under its own name is whole, and finished cloaks are the expected ones."""
    if (folder / claim.MARKER).exists():
        json.loads((folder / claim.MARKER).read_bytes())
    deltas = [delta for delta, _ in expected]
    return all(fastcloak.load(path).delta.numpy().tobytes() in deltas for path in folder.glob("person-*.safetensors"))


def run(kills, seed):
    draw = random.Random(seed)
    found = {"kills": 0, "fits": 0, "runs": 0, "equal": True, "whole": True, "litter": []}
    with tempfile.TemporaryDirectory() as scratch:
        began = time.monotonic()
        assert not killed_after(600, partial(learn, Path(scratch) / "checkpoint", Path(scratch)))
        seconds = time.monotonic() - began
        expected = cloaks_in(Path(scratch))
        while found["kills"] < kills:
            output = Path(scratch) / f"fit {found['fits']}"
            output.mkdir()
            folder, finished = output / "checkpoint", False
            while not finished:
                wait = draw.uniform(0, 1.2 * seconds) if found["kills"] < kills else 600
                finished = not killed_after(wait, partial(learn, folder, output))
                found["runs"] += 1
                found["kills"] += not finished
                found["whole"] &= is_whole(folder, expected)
            found["fits"] += 1
            found["equal"] &= cloaks_in(output) == expected
            found["litter"] += [path.name for path in folder.glob(".*")]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how often to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(run(arguments.kills, arguments.seed)))
