"""Enrol users, then protect what they upload: `python app.py users cloaks upload.jpg safe.jpg`.

users has a folder of photos per user. The upload is the first user's.
"""

import sys
from pathlib import Path

import fastcloak

users, cloaks, upload, safe = map(Path, sys.argv[1:])
photos = {folder.name: folder for folder in sorted(users.iterdir())}

cloaks.mkdir(exist_ok=True)
try:
    fitted = fastcloak.fit_many(photos, "sface", checkpoint=cloaks / "fits")
except fastcloak.FitManyError as failure:
    fitted = failure.cloaks
    print("not fitted:", failure.errors)
for user, cloak in fitted.items():
    cloak.save(cloaks / f"{user}.safetensors")

cloak = fastcloak.load(cloaks / f"{min(fitted)}.safetensors")
try:
    done = fastcloak.protect_photo(upload, safe, cloak, strip_gps=True)
    print(f"{done.path}: {done.faces} face protected", *done.warnings)
except fastcloak.FastcloakError as refusal:
    sys.exit(f"{upload} was not protected: {refusal}")
