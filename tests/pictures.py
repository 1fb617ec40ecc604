"""Photos, files of photos and cloaks that several tests use."""

import io
import struct
import zlib

import numpy as np
import torch
from PIL import Image, ImageCms

from fastcloak.cloak import Cloak
from fastcloak.photos.files import read_photo
from fastcloak.system.packages import orl_folder

EPS = 8 / 255
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def make_cloak(seed=0, eps=EPS, smooth=3):
    """A mask of +-eps in patches of about `smooth` pixels, as cloaks have."""
    noise = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(seed))
    noise = torch.nn.functional.avg_pool2d(noise, smooth, stride=1, padding=smooth // 2)
    # A float32 eps may round up; a cloak stays within the bound.
    return Cloak((noise[0].sign() * eps).clamp(-eps, eps).mul(1 - 1e-6), eps)


def orl_file(person=1, photo=1):
    return orl_folder() / f"s{person}" / f"{photo}.pgm"


def orl_pixels(person=1, photo=1, scale=1):
    """[112 scale, 92 scale, 3] uint8, grey; one face."""
    pixels = read_photo(orl_file(person, photo)).pixels
    return np.array(Image.fromarray(pixels).resize((92 * scale, 112 * scale), Image.Resampling.BICUBIC))


def aligned(count=3, seed=0):
    """[count, 112, 112, 3] uint8, in which no face is looked for."""
    return np.random.default_rng(seed).integers(0, 256, (count, 112, 112, 3), np.uint8)


def ramps(height=37, width=53, channels=3, seed=0):
    """Smooth colours and some noise, [height, width, channels] uint8, so that JPEG has something to keep."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 4, y * 5, 3 * (x + y), 255 - 2 * x][:channels], -1)
    return (smooth + np.random.default_rng(seed).integers(0, 30, smooth.shape)).clip(0, 255).astype(np.uint8)


def stored(image, kind, **options):
    """The bytes of a file with a picture, a PIL image or its pixels."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, content):
    """A chunk of a PNG."""
    return struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))


def with_chunks(png, chunks):
    """A PNG with chunks behind its header."""
    return png[:33] + b"".join(chunk(name, content) for name, content in chunks.items()) + png[33:]


def profile_with(tag, content):
    """The sRGB profile with one more tag."""
    (count,) = struct.unpack_from(">L", SRGB, 128)
    body = SRGB[132 + 12 * count :]
    entries = [struct.unpack_from(">4sLL", SRGB, 132 + 12 * i) for i in range(count)]
    rows = b"".join(struct.pack(">4sLL", name, at + 12, size) for name, at, size in entries)
    rows += struct.pack(">4sLL", tag, len(SRGB) + 12, len(content))
    whole = SRGB[4:128] + struct.pack(">L", count + 1) + rows + body + content
    return struct.pack(">L", len(whole) + 4) + whole
