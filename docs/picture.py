"""Draws the README's picture, docs/cloak.jpg: `python docs/picture.py`.

The photo is NASA's portrait of Eileen Collins (public domain), which scikit-image ships. There is one photo of
her, so the cloak is fitted to it and its mirror image. A cloak for real use needs about ten photos.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.data import astronaut

import fastcloak

HEAD = np.s_[0:240, 110:350]
SIDE, GAP, CAPTION = 300, 6, 30

photo = astronaut()  # [512, 512, 3] uint8
cloak = fastcloak.fit([Image.fromarray(photo), Image.fromarray(photo[:, ::-1])], "sface")
protected = fastcloak.protect(photo, cloak)
mask = np.clip(128 + 8 * (protected.astype(int) - photo), 0, 255).astype(np.uint8)

panels = {"original": photo, "protected": protected, "the mask, 8 times as strong": mask}
sheet = Image.new("RGB", (len(panels) * (SIDE + GAP) - GAP, SIDE + CAPTION), "white")
draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
for column, (caption, pixels) in enumerate(panels.items()):
    left = column * (SIDE + GAP)
    sheet.paste(Image.fromarray(pixels[HEAD]).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, 0))
    draw.text((left + SIDE / 2, SIDE + CAPTION / 2), caption, fill="black", font=font, anchor="mm")
sheet.save(Path(__file__).with_name("cloak.jpg"), quality=92, subsampling=0)
