"""Small networks that judge faces, and faces for which their numbers can be worked out on paper."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastcloak import load_model


class RedGreen(nn.Module):
    """Embeds a picture as (mean red, mean green): every angle can be worked out on paper."""

    def forward(self, faces):
        return faces[:, :2].mean((2, 3))


class Pixels(nn.Module):
    """The picture at 8x8, each number less the mean: sees what is in a picture and not how bright it is."""

    def forward(self, faces):
        small = nn.functional.adaptive_avg_pool2d(faces, 8).flatten(1)
        return small - small.mean(1, keepdim=True)


def network(name="other", module=RedGreen):
    return load_model(module(), name=name)


def flat(*colours):
    """[N, 3, 112, 112] uint8 of one (red, green) each."""
    faces = torch.zeros(len(colours), 3, 112, 112, dtype=torch.uint8)
    faces[:, :2] = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None]
    return faces


def noise(n, seed):
    return torch.randint(0, 256, (n, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def orl_photo(folder, person, photo, size):
    """[H, W, 3] of one of the ORL people, of size (W, H)."""
    with Image.open(folder / f"s{person}" / f"{photo}.pgm") as image:
        return np.array(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
