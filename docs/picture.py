"""Draws the README's picture, docs/cloak.jpg: `python docs/picture.py`.

The photo is NASA's portrait of Eileen Collins (public domain), which scikit-image ships. There is one photo of
her, so that both masks are learnt from it and its mirror image. For real use, about ten photos are needed.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.data import astronaut

import fastcloak

HEAD = np.s_[0:240, 110:350]
SIDE, GAP, CAPTION = 300, 6, 30

photo = astronaut()  # [512, 512, 3] uint8
hers = [Image.fromarray(photo), Image.fromarray(photo[:, ::-1])]
universal = fastcloak.protect(photo, fastcloak.fit(hers, "sface"))
with TemporaryDirectory() as folder:
    album, safe = Path(folder, "album"), Path(folder, "safe")
    album.mkdir()
    hers[0].save(album / "photo.png")
    fastcloak.tailor_photos(fastcloak.plan_photos([album], safe), fastcloak.enrol(hers))
    tailored = np.asarray(Image.open(safe / "photo.png"))

panels = {"original": photo, "one mask for all photos": universal, "a mask for this photo": tailored}
sheet = Image.new("RGB", (len(panels) * (SIDE + GAP) - GAP, SIDE + CAPTION), "white")
draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
for column, (caption, pixels) in enumerate(panels.items()):
    left = column * (SIDE + GAP)
    sheet.paste(Image.fromarray(pixels[HEAD]).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, 0))
    draw.text((left + SIDE / 2, SIDE + CAPTION / 2), caption, fill="black", font=font, anchor="mm")
sheet.save(Path(__file__).with_name("cloak.jpg"), quality=92, subsampling=0)
