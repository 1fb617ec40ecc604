"""Fit a cloak to photos of one person and protect an album: `python album.py photos/of/me album safe`."""

import sys

import fastcloak

photos, album, safe = sys.argv[1:]
cloak = fastcloak.fit(photos, "sface")
cloak.save("me.safetensors")

me = fastcloak.enrol(photos)  # finds this person in group photos
for outcome in fastcloak.protect_photos(fastcloak.plan_photos([album], safe), cloak, who=me):
    print(outcome.source, outcome.status, outcome.error, *outcome.warnings)

print(fastcloak.check_photos(album, safe, "dlib", cloak=cloak).table())
