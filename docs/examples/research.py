"""Compare two methods on a network they were not fitted on: `python research.py people strangers`.

people has a folder of eight or more photos per person: the first six are fitted to, the others judge.
"""

import sys
from pathlib import Path

import fastcloak

people, strangers = map(Path, sys.argv[1:])
photos = {folder.name: sorted(folder.iterdir()) for folder in sorted(people.iterdir())}
fitted_to = {name: files[:6] for name, files in photos.items()}
probes = {name: files[6:] for name, files in photos.items()}

surrogate, target = fastcloak.load_model("sface"), fastcloak.load_model("dlib")
for method in ("opom", "ga"):
    cloaks = fastcloak.fit_many(fitted_to, surrogate, method=method, eps=8 / 255, seed=0)
    evaluation = fastcloak.evaluate(cloaks, probes, target, strangers, label=method)
    print(evaluation.table())
