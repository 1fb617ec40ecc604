"""What a check found: its numbers, and what they say in words, tables and JSON.

`fastcloak.evaluation.check` says what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fastcloak.evaluation.results import LEAST_PAIRS, ModelCheck, PhotoCheck, Side
from fastcloak.evaluation.text import aligned, counted, decibel, percent, plain_name, short
from fastcloak.protection.enrolment import SAME_PERSON

__all__ = [
    "LEAST_PAIRS",
    "Check",
    "ModelCheck",
    "PhotoCheck",
    "Side",
    "counted",
    "decibel",
    "plain_name",
    "recognised_words",
    "short",
    "starred",
]


@dataclass(frozen=True)
class Check:
    """What several networks make of one person's protected photos: see `check_photos`.

    Attributes:
        photos: those that were checked.
        distractors: how many photos of other people there were.
        learnt_on: the networks that the cloak was learnt on; None: no cloak was given.
        models: one entry per network.
        omitted: originals of which there is no protected photo.
        failed: photos that could not be checked -> why.
        left_out: distractors that were not used, since they show the person.
    """

    photos: tuple[PhotoCheck, ...]
    distractors: int
    learnt_on: tuple[str, ...] | None
    models: tuple[ModelCheck, ...]
    omitted: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every photo that was given was checked, and some distractor is left if any was given."""
        return not self.omitted and not self.failed and bool(self.distractors or not self.left_out)

    def headline(self) -> str:
        """Say in one sentence how many networks recognise the person, after one on photos that are as they were."""
        if not self.photos:
            return "No photo was checked, so that nothing is known of these photos."
        changed = [i for i, photo in enumerate(self.photos) if not photo.unchanged]
        bare = len(self.photos) - len(changed)
        if not bare:
            return self._recognition(changed)
        same = f"Nothing was changed in {bare} of {counted(len(self.photos), 'photo')}: not protected."
        return f"{same} {self._recognition(changed)}" if changed else same

    def _recognition(self, changed: Sequence[int]) -> str:
        if all(own is None for own in self.models[0].as_saved.after.own):
            return f"The detector used here finds no face in {counted(len(self.photos), 'protected photo')}."

        judges = [model for model in self.models if model.threshold is not None]
        if not judges:
            return "Whether these networks recognise the person is not known: none has a threshold, see below."
        fooled = [model for model in judges if _missed([model.as_saved.after.recognised[i] for i in changed])]
        other = "" if len(changed) == len(self.photos) else "other "
        where = f"the {other}{len(changed)} photos" if len(changed) > 1 else "the other photo"
        in_one, in_any = ("in at least one of ", "in any of ") if len(changed) > 1 else ("in ", "in ")
        if not fooled:
            who = {1: "the one network", 2: "both networks"}.get(len(judges), f"all {len(judges)} networks") + " asked"
            return f"Recognised by {who}{f' {in_one}{where}' * (len(self.photos) > 1)}."
        names = f": {', '.join(map(starred, fooled))}" if len(fooled) < len(judges) else ""
        anywhere = f" {in_any}{where}" if len(self.photos) > 1 else ""
        return f"Not recognised by {len(fooled)} of {counted(len(judges), 'network')}{anywhere}{names}."

    def summary(self) -> list[str]:
        """Say in sentences what was found: the headline, what it means, and what is left after saving and resizing."""
        lines = [self.headline()]
        judges = [model for model in self.models if model.threshold is not None]
        if judges:
            cases = {name: _cases(_afters(judges, i)) for i, name in enumerate(self.survivals)}
            before = _cases([model.as_saved.before for model in judges])
            lines.append(
                "Photo by photo and network by network: not recognised in "
                f"{_of(cases[self.survivals[0]])}; before protection in {_of(before)}."
            )
            worst = min(self.survivals, key=lambda name: cases[name][0] / max(cases[name][1], 1))
            if cases[worst][1] and worst != self.survivals[0]:
                lines.append(
                    f"Of the changes that were tried, {worst} undoes most: then not recognised in {_of(cases[worst])}."
                )
            linked = [
                f"{starred(model)} {percent(share)}%"
                for model in judges
                if (share := model.as_saved.after.linked) is not None
            ]
            if linked:
                lines.append(f"Pairs of two protected photos that a network takes for one person: {', '.join(linked)}.")
            lines.append(self.definition())
        unfound = max((model.as_saved.after.no_face for model in self.models), default=0)
        if unfound:
            lines.append(
                f"In {counted(unfound, 'protected photo')} no face was found; they are in no number but this one."
            )
        if self.left_out:
            few = ", ".join(map(plain_name, self.left_out[:5])) + " ..." * (len(self.left_out) > 5)
            given = counted(self.distractors + len(self.left_out), "distractor")
            lines.append(
                f"Left out: {len(self.left_out)} of {given}. They show the person or are copies of these photos: {few}."
            )
        if self.omitted or self.failed:
            lines.append(
                f"Not checked: {counted(len(self.omitted) + len(self.failed), 'file')}, listed with the reason."
            )
        return lines

    def definition(self) -> str:
        """Say what "recognised" means here."""
        if len(self.photos) == 1:
            return (
                "A network counts as recognising the person if its cosine between the protected photo and its own "
                "original reaches its threshold; with more photos the other originals would count instead."
            )
        count = len(self.photos) - 1
        others = "the other original" if count == 1 else f"at least one of the {count} other originals"
        return (
            f"A network counts as recognising the person in a photo if its cosine with {others} reaches its "
            "threshold, and in the first sentence if it does so in at least one photo."
        )

    def verdict(self, photo: int) -> str:
        """Say in words what the networks make of a protected photo as it was saved: "not recognised by 3 of 4 ..."."""
        if self.photos[photo].unchanged:
            return "not protected: nothing was changed"
        found = [model.as_saved.after.recognised[photo] for model in self.models]
        if self.models[0].as_saved.after.own[photo] is None:
            return "no face found"
        judged = [one for one in found if one is not None]
        if not judged:
            return "no threshold known"
        if all(judged):
            return f"recognised by {len(judged)} of {counted(len(judged), 'network')}"
        return f"not recognised by {judged.count(False)} of {counted(len(judged), 'network')}"

    @property
    def survivals(self) -> tuple[str, ...]:
        """The names of the changes that were tried, the first being none."""
        return tuple(one.survival for one in self.models[0].survivals)

    def limits(self) -> list[str]:
        """Say in sentences what the numbers do not tell."""
        if not self.photos:
            return []
        asked = ", ".join(model.model for model in self.models)
        lines = [f"Only these networks were asked: {asked}. Nothing is promised for any other network or service."]
        if self.learnt_on is None:
            lines.append("The cloak was not given, so it is not known which of them it was learnt on.")
        else:
            known = [model.model for model in self.models if model.white_box]
            learnt = ", ".join(map(plain_name, self.learnt_on)) or "no network that it names"
            lines.append(
                f"The cloak was learnt on {learnt}. "
                + (
                    f"Networks marked * ({', '.join(known)}) show how well that went, not protection from strangers. "
                    if known
                    else "None of the networks here has that name. "
                )
                + "It goes by name: the same network under another name is not marked."
            )
        for model in self.models:
            lines.append(
                f"{model.model}: no threshold is known, and {LEAST_PAIRS} pairs of an original and a distractor are "
                "needed to estimate one: verification is left out."
                if model.threshold is None
                else f"{model.model}: threshold {model.threshold.value:.3f}, {model.threshold.origin}."
            )
        lines.append(
            f"Top-1, Top-5 and linkage are among {counted(self.distractors, 'distractor')}: real collections are far "
            "larger, so that there the clean photo is found less often, protected or not."
            if self.distractors
            else "Without photos of other people (distractors) there is no Top-1, Top-5 and linkage among them."
        )
        if self.distractors or self.left_out:
            judges = [model.model for model in self.models if model.model in SAME_PERSON]
            lines.append(
                "Distractors that show the person make protection look better than it is. Left out are copies of these "
                "photos"
                + (
                    f", and what {' or '.join(judges)} takes for the person beyond doubt. Others may be left."
                    if judges
                    else "; whether others show the person, no network here can tell beyond doubt."
                )
            )
        lines.append(
            "Linkage: all photos of a person carry the same mask, and a network may match protected photos with each "
            "other even where it does not match them with the originals."
        )
        if any(photo.largest_change is not None and photo.psnr is None for photo in self.photos):
            lines.append("PSNR and SSIM were not measured: pip install 'fastcloak[report]' installs what does.")
        if any(photo.largest_change is None for photo in self.photos):
            lines.append("A protected photo of another size than its original has no PSNR, SSIM and largest change.")
        lines.append(
            "A cloak hides from machines, not from people; whoever knows of cloaks can train against them or remove "
            "them, and one photo posted without a cloak can be enough."
        )
        return lines

    def table(self) -> str:
        """Lay everything out as text: the summary, a row per network, what is left after each change, the limits."""
        if not self.photos:
            return "\n".join([*self.summary(), *self.omissions()])
        return "\n".join(
            [
                *self.summary(),
                "",
                *self._model_table(),
                "",
                "Photos in which the person is recognised, after / before protection:",
                *self._survival_table(),
                "",
                *self._photo_table(),
                "",
                f"{counted(len(self.photos), 'photo')}, {counted(self.distractors, 'distractor')}.",
                "own: mean cosine of a protected photo with its original; others: with the other originals.",
                "accepted: % of pairs of a protected photo and another original that reach the threshold.",
                "linked: the same for pairs of two protected photos.  before: the same pairs of originals.",
                "Top-1, Top-5: % of pairs whose clean photo is not among the 1 or 5 best matches; higher is better.",
                "linkage: % of pairs where the protected photos match each other first; lower is better.",
                *self.limits(),
                *self.omissions(),
            ]
        )

    def omissions(self) -> list[str]:
        """Say what was not checked, and why."""
        lines = []
        if self.omitted:
            names = ", ".join(map(plain_name, self.omitted))
            lines.append(f"Not checked, since there is no protected photo of that name: {names}.")
        lines += [f"Not checked: {plain_name(name)}: {plain_name(why)}" for name, why in self.failed.items()]
        return lines

    def _model_table(self) -> list[str]:
        header = ("network", "threshold", "own", "others", "before", "accepted", "before", "linked", "before")
        rates = ("Top-1", "Top-5", "linkage")
        lines = []
        for model in self.models:
            before, after = model.as_saved.before, model.as_saved.after
            lines.append(
                (
                    starred(model),
                    "-" if model.threshold is None else f"{model.threshold.value:.3f}",
                    short(after.own),
                    short(after.others),
                    short(before.others),
                    *(_share(share) for share in (after.accepted, before.accepted, after.linked, before.linked)),
                    *(("-",) * 3 if after.rates is None else map(percent, after.rates[:3])),
                )
            )
        return aligned((*header, *rates), lines, left=1)

    def _survival_table(self) -> list[str]:
        header = ("photos", *map(starred, self.models))
        lines = [
            (
                name,
                *(
                    f"{recognised_words(model.survivals[i].after)} / {recognised_words(model.survivals[i].before)}"
                    for model in self.models
                ),
            )
            for i, name in enumerate(self.survivals)
        ]
        return aligned(header, lines, left=1)

    def _photo_table(self) -> list[str]:
        header = ("photo", "as saved", "change", "PSNR", "SSIM", "face PSNR", "face SSIM")
        lines = [
            (
                plain_name(photo.name),
                self.verdict(i),
                "-" if photo.largest_change is None else str(photo.largest_change),
                decibel(photo.psnr),
                short([photo.ssim]),
                decibel(photo.face_psnr),
                short([photo.face_ssim]),
            )
            for i, photo in enumerate(self.photos)
        ]
        return aligned(header, lines, left=2)

    def to_json(self) -> dict[str, Any]:
        """Turn into plain dicts, lists, strings and numbers, ready for `json.dumps`; infinite PSNR becomes null."""
        return {
            "summary": self.summary(),
            "limits": self.limits(),
            "photos": [
                {
                    name: None if value == math.inf else value
                    for name, value in vars(photo).items()
                    if name != "pictures"
                }
                | {"verdict": self.verdict(i)}
                for i, photo in enumerate(self.photos)
            ],
            "distractors": self.distractors,
            "learnt_on": None if self.learnt_on is None else list(self.learnt_on),
            "models": [
                {
                    "model": model.model,
                    "white_box": model.white_box,
                    "threshold": None if model.threshold is None else asdict(model.threshold),
                    "survivals": [
                        {"survival": one.survival, "before": _side_json(one.before), "after": _side_json(one.after)}
                        for one in model.survivals
                    ],
                }
                for model in self.models
            ],
            "omitted": list(self.omitted),
            "failed": dict(self.failed),
            "left_out": list(self.left_out),
        }


def recognised_words(side: Side) -> str:
    """Say in how many of the photos the person is recognised, of those with a face: "3 of 10", or "-"."""
    judged = [one for one in side.recognised if one is not None]
    return f"{judged.count(True)} of {len(judged)}" if judged else "-"


def starred(model: ModelCheck) -> str:
    """Name a network, with a star if the cloak was learnt on it."""
    return model.model + ("*" if model.white_box else "")


def _missed(recognised: Sequence[bool | None]) -> bool:
    return True not in recognised and False in recognised


def _afters(models: Sequence[ModelCheck], survival: int) -> list[Side]:
    return [model.survivals[survival].after for model in models]


def _cases(sides: Sequence[Side]) -> tuple[int, int]:
    """In how many cases, a photo on a network each, the person is not recognised, and of how many."""
    judged = [one for side in sides for one in side.recognised if one is not None]
    return judged.count(False), len(judged)


def _of(cases: tuple[int, int]) -> str:
    return f"{cases[0]} of {counted(cases[1], 'case')}"


def _share(share: float | None) -> str:
    return "-" if share is None else percent(share)


def _side_json(side: Side) -> dict[str, Any]:
    return {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in vars(side).items()},
        "rates": None if side.rates is None else side.rates._asdict(),
        "no_face": side.no_face,
    }
