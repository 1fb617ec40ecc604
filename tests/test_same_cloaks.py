"""Cloaks are the same before and after a change that is not meant to change them.

`same_cloaks.npz` holds a dozen masks as they came out before; `python -m tests.test_same_cloaks` writes it again, after
a change that is meant. On the machine that wrote it they are equal to the bit. Others round differently, which signs
make grow from step to step: at 16 steps a tenth of the pixels may differ, so that these fits have few.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import fastcloak
from tests.conftest import TinyNet, smooth_faces

FILE = Path(__file__).parent / "same_cloaks.npz"
# Levels of eps / 127: the masks of signed steps have few values, and are kept in a byte each.
LEVELS = 127


class Turned(torch.nn.Module):
    """Another network: the mirrored photo's embedding, some numbers of it turned round."""

    def __init__(self):
        super().__init__()
        self.net = TinyNet()
        self.signs = torch.nn.Parameter(torch.tensor([1.0, -1.0] * 8))

    def forward(self, x):
        return self.net(x.flip(-1)) * self.signs


FITS = {
    "opom": {"method": "opom", "steps": 7},
    "opom, affine hull, momentum": {"method": "opom", "objective": "affine_hull", "decay": 1.0},
    "opom, fi_uap, larger steps": {"method": "opom", "objective": "fi_uap", "alpha": 2 / 255, "steps": 7, "seed": 3},
    "plain": {"preset": "plain", "steps": 4, "warmup": 2},
    "plain, batches of 2": {
        "preset": "plain",
        "batch_size": 2,
        "inner_steps": 5,
        "objective": "fi_uap_plus",
        "steps": 1,
    },
    "plain, class center, no random start": {
        "preset": "plain",
        "objective": "class_center",
        "random_start": False,
        "steps": 4,
    },
    "plain, reduced hull": {"preset": "plain", "lower": 0.05, "upper": 0.5, "steps": 4, "warmup": 2},
    "fast": {"preset": "fast", "steps": 7},
    "fast, smaller eps, grey": {"preset": "fast", "eps": 4 / 255, "grey": True, "steps": 7},
    "fast, photo views": {"preset": "fast", "augment": "+photo", "steps": 4},
    "balanced": {"preset": "balanced", "steps": 6},
    "dropout": {"preset": "plain", "dropout": 0.1, "steps": 6},
    "strong, two networks in turns": {"preset": "strong", "steps": 6, "networks": 2},
    "two networks, mean of losses": {"preset": "plain", "ensemble": "loss", "steps": 6, "networks": 2},
}


def fitted(options, **more):
    networks = options.get("networks", 1)
    options = {name: value for name, value in options.items() if name != "networks"}
    models = [fastcloak.load_model(module, device="cpu") for module in (TinyNet(), Turned())[:networks]]
    for i, model in enumerate(models):
        model.name = f"net{i}"
    how = {"device": "cpu", "dtype": "float32", "backend": "reference", "engine": "eager"}
    return fastcloak.fit(smooth_faces(6), models, **how | options | more)


def levels(cloak):
    return np.rint(cloak.delta.numpy() / cloak.eps * LEVELS).astype(np.int8)


@pytest.mark.parametrize("name", FITS)
def test_cloaks_are_the_same_as_before(name):
    with np.load(FILE) as masks:
        before = masks[name]
    differs = float((levels(fitted(FITS[name])) != before).mean())
    assert differs <= 0.002, f"{differs:.2%} of the pixels differ"


@pytest.mark.parametrize("name", ["fast", "opom, affine hull, momentum"])
def test_a_cloak_through_a_checkpoint_is_the_same_to_the_bit(name, tmp_path):
    class Stopped(Exception):
        pass

    def stop(done, total):
        if done == total // 2:
            raise Stopped

    with pytest.raises(Stopped):
        fitted(FITS[name], checkpoint=tmp_path, progress=stop)
    assert torch.equal(fitted(FITS[name], checkpoint=tmp_path).delta, fitted(FITS[name]).delta)


if __name__ == "__main__":
    np.savez_compressed(FILE, **{name: levels(fitted(options)) for name, options in FITS.items()})
