"""What a check found: its numbers, and what they say in sentences, tables and JSON.

`fastcloak.evaluation.check` says what is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastcloak.evaluation.postprocessing import FILTER_FACE, NON_LOCAL_MEANS
from fastcloak.evaluation.results import (
    ATTACKS,
    ModelCheck,
    PhotoCheck,
    PostProcessingCheck,
    Side,
    plain,
    share_of_strangers,
    threshold_words,
)
from fastcloak.evaluation.text import Bad, Good, Table, as_text, counted, decibel, mean, percent, plain_name, rounded
from fastcloak.protection.enrolment import FALSE_ACCEPT_RATE, SAME_PERSON

# What the headline counts.
PAIR = (
    "A pair is a protected photo and another original. A network recognises it if their cosine reaches its threshold, "
    f"which 1 in {round(1 / FALSE_ACCEPT_RATE):,} pairs of different people reach."
)


@dataclass(frozen=True)
class Check:
    """What several networks make of one person's protected photos: see `check_photos`.

    Attributes:
        photos: those that were checked.
        distractors: how many photos of other people there were.
        fitted_on: the networks that the masks were fitted on; None: not known.
        models: one entry per network.
        omitted: originals of which there is no protected photo.
        failed: photos that could not be checked -> why.
        left_out: distractors that were not used, since they show the person.
        protected_distractors: how many protected photos of other people there were.
        one_mask: whether a cloak was given, so that all photos carry one mask.
    """

    photos: tuple[PhotoCheck, ...]
    distractors: int
    fitted_on: tuple[str, ...] | None
    models: tuple[ModelCheck, ...]
    omitted: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    protected_distractors: int = 0
    one_mask: bool = False

    @property
    def complete(self) -> bool:
        """Whether every photo that was given was checked, and some distractor is left if any was given."""
        return not self.omitted and not self.failed and bool(self.distractors or not self.left_out)

    @property
    def post_processing(self) -> tuple[str, ...]:
        """The names of the post-processings that were tried, the first being none."""
        return tuple(one.name for one in self.models[0].post_processing)

    @property
    def judges(self) -> list[ModelCheck]:
        """The networks whose threshold is known."""
        return [model for model in self.models if model.threshold is not None]

    def headline(self) -> str:
        """Say in one sentence in how many pairs a network recognises the person, after one on unchanged photos."""
        if not self.photos:
            return "No photo was checked, so that nothing is known of these photos."
        bare = len(self.photos) - len(self._changed)
        same = f"Nothing was changed in {bare} of {counted(len(self.photos), 'photo')}: not protected."
        if not self._changed:
            return same
        found = self._pairs_recognised() or self._recognition()
        return f"{same} {found}" if bare else found

    @property
    def _changed(self) -> list[int]:
        return [i for i, photo in enumerate(self.photos) if not photo.unchanged]

    def _highest(self, rate: str) -> ModelCheck | None:
        """The network with the highest rate of protected photos; None where it is known of no network."""
        known = [model for model in self.judges if _rate(model.as_saved.after, rate) is not None]
        return max(known, key=lambda model: _rate(model.as_saved.after, rate) or 0.0, default=None)

    def _pairs_recognised(self) -> str:
        model = self._highest("accepted")
        if model is None:
            return ""
        after, before = (percent(side.accepted) for side in (model.as_saved.after, model.as_saved.before))
        most = f", the most of {len(self.judges)} networks" if len(self.judges) > 1 else ""
        return f"Recognised by {starred(model)} in {after} % of pairs{most}; before protection in {before} %."

    def _recognition(self) -> str:
        """How many networks recognise the person in any photo that was changed."""
        changed, count, judges = self._changed, len(self.photos), self.judges
        if all(own is None for own in self.models[0].as_saved.after.own):
            return f"The detector used here finds no face in {counted(count, 'protected photo')}."
        if not judges:
            return "Whether these networks recognise the person is not known: none has a threshold, see below."
        in_one = in_any = " in the other photo" if count > 1 else ""
        if len(changed) > 1:
            where = f"of the {'' if len(changed) == count else 'other '}{len(changed)} photos"
            in_one, in_any = f" in at least one {where}", f" in any {where}"
        fooled = []
        for model in judges:
            recognised = [model.as_saved.after.recognised[i] for i in changed]
            if True not in recognised and False in recognised:
                fooled.append(starred(model))
        if not fooled:
            who = {1: "the one network", 2: "both networks"}.get(len(judges), f"all {len(judges)} networks")
            return f"Recognised by {who} asked{in_one}."
        names = f": {', '.join(fooled)}" if len(fooled) < len(judges) else ""
        return f"Not recognised by {len(fooled)} of {counted(len(judges), 'network')}{in_any}{names}."

    def summary(self) -> list[str]:
        """Say in sentences what was found: the headline, what it means, and what is left after post-processing."""
        lines = [self.headline()]
        if self.judges and all(model.white_box for model in self.judges):
            lines.append(
                "Every network with a threshold is one that the masks were fitted on (*), which says little of others: "
                "ask more networks."
            )
        judges = self.judges
        if self._changed and self._pairs_recognised():
            lines += [PAIR, self._recognition()]
        if judges:
            before = _cases([model.as_saved.before for model in judges])
            after = {
                name: _cases([model.post_processing[i].after for model in judges])
                for i, name in enumerate(self.post_processing)
            }
            as_saved = self.post_processing[0]
            lines.append(
                f"Photo by photo and network by network: not recognised in {_of(after[as_saved])}; "
                f"before protection in {_of(before)}."
            )
            worst = min(after, key=lambda name: after[name][0] / max(after[name][1], 1))
            if after[worst][1] and worst != as_saved:
                lines.append(
                    f"Of the post-processing that was tried, {worst} undoes most: "
                    f"then not recognised in {_of(after[worst])}."
                )
            lines += self._attack_words()
            lines.append(self.definition())
        no_face = max((model.as_saved.after.no_face for model in self.models), default=0)
        if no_face:
            lines.append(
                f"In {counted(no_face, 'protected photo')} no face was found; they are in no number but this one."
            )
        if self.left_out:
            few = _listed(self.left_out[:5]) + " ..." * (len(self.left_out) > 5)
            given = counted(self.distractors + self.protected_distractors + len(self.left_out), "distractor")
            lines.append(
                f"Left out: {len(self.left_out)} of {given}. They show the person or are copies of these photos: {few}."
            )
        if self.omitted or self.failed:
            lines.append(
                f"Not checked: {counted(len(self.omitted) + len(self.failed), 'file')}, listed with the reason."
            )
        return lines

    def _attack_words(self) -> list[str]:
        """What someone finds who tries more than to compare a protected photo with originals."""
        lines = []
        linked = [
            f"{starred(model)} {percent(model.as_saved.after.linked)} %"
            for model in self.judges
            if model.as_saved.after.linked is not None
        ]
        if linked:
            lines.append(f"Pairs of two protected photos that a network takes for one person: {', '.join(linked)}.")
        tracker = self._highest("tracked")
        if tracker is not None:
            after, before = (percent(side.tracked) for side in (tracker.as_saved.after, tracker.as_saved.before))
            lines.append(
                "Someone who starts with one original, and adds each photo that is recognised, finds "
                f"{after} % of the album on {starred(tracker)}; before protection {before} %."
            )
        for model in self.judges:
            if _impersonates(model.as_saved):
                after, before, usual = map(
                    share_of_strangers,
                    (model.as_saved.after.impersonation, model.as_saved.before.impersonation, FALSE_ACCEPT_RATE),
                )
                lines.append(
                    f"{starred(model)} takes protected photos for somebody else more often than the originals: in "
                    f"{after} % of pairs with a distractor, before in {before} %; {usual} % is usual."
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
            f"A network counts as recognising the person in a photo if its cosine with {others} reaches its threshold."
        )

    def verdict(self, photo: int) -> str:
        """What the networks make of a protected photo as it was saved: "not recognised by 3 of 4 ..."."""
        if self.photos[photo].unchanged:
            return "not protected: nothing was changed"
        if self.models[0].as_saved.after.own[photo] is None:
            return "no face found"
        judged = [model.as_saved.after.recognised[photo] for model in self.judges]
        if not judged:
            return "no threshold known"
        if all(judged):
            return f"recognised by {len(judged)} of {counted(len(judged), 'network')}"
        return f"not recognised by {judged.count(False)} of {counted(len(judged), 'network')}"

    def limits(self) -> list[str]:
        """Say in sentences what the numbers do not tell."""
        if not self.photos:
            return []
        asked = ", ".join(model.model for model in self.models)
        lines = [f"Only these networks were asked: {asked}. Nothing is promised for any other network or service."]
        if self.fitted_on is None:
            lines.append(
                "Which of them the masks were fitted on is not known: no cloak was given, and the folder of protected "
                "photos does not say."
            )
        else:
            white_box = ", ".join(model.model for model in self.models if model.white_box)
            marked = "None of the networks here has that name."
            if white_box:
                marked = f"Networks marked * ({white_box}) show how well that went, not protection from strangers."
            lines.append(
                f"{'The cloak was' if self.one_mask else 'The masks were'} fitted on "
                f"{_listed(self.fitted_on) or 'no network that it names'}. {marked} "
                "It goes by name: the same network under another name is not marked."
            )
        lines += [threshold_words(model.model, model.threshold) for model in self.models]
        lines.append(
            f"Top-1, Top-5 and linkage are among {counted(self.distractors, 'distractor')}: real collections are far "
            "larger, so that there the clean photo is found less often, protected or not."
            if self.distractors
            else "Without photos of other people (distractors) there is no Top-1, Top-5 and linkage among them."
        )
        if self.distractors or self.left_out:
            certain = " or ".join(model.model for model in self.models if model.model in SAME_PERSON)
            rest = "; whether others show the person, no network here can tell beyond doubt."
            if certain:
                rest = f", and what {certain} takes for the person beyond doubt. Others may be left."
            lines.append(
                "Distractors that show the person make protection look better than it is. Left out are copies of these "
                f"photos{rest}"
            )
        why = "all photos of a person carry the same mask, and " if self.one_mask else ""
        lines.append(
            f"Linkage: {why}a network may match protected photos with each other even where it does not match them "
            "with the originals."
        )
        sized = [photo for photo in self.photos if photo.largest_change is not None]
        missing = [
            name
            for name, values in {
                "PSNR, SSIM and CIEDE2000": [photo.psnr for photo in sized],
                "SSIMULACRA2": [photo.face_ssimulacra2 for photo in sized],
            }.items()
            if None in values
        ]
        if missing:
            lines.append(
                f"Not measured: {' and '.join(missing)}. pip install 'fastcloak[report]' installs what does; faces of "
                "less than 8 pixels have no SSIM and SSIMULACRA2."
            )
        if NON_LOCAL_MEANS not in self.post_processing:
            lines.append(
                "Non-local means was not tried: pip install 'fastcloak[faces]' installs OpenCV, which does it."
            )
        if any(photo.largest_change is None for photo in self.photos):
            lines.append("A protected photo of another size than its original has none of the scores of photos.")
        lines.append(
            "A mask hides from machines, not from people; whoever knows of masks can train against them or remove "
            "them, and one photo posted without a mask can be enough."
        )
        return lines

    def omissions(self) -> list[str]:
        """Say what was not checked, and why."""
        lines = []
        if self.omitted:
            lines.append(f"Not checked, since there is no protected photo of that name: {_listed(self.omitted)}.")
        lines += [f"Not checked: {plain_name(name)}: {plain_name(why)}" for name, why in self.failed.items()]
        return lines

    def network_table(self) -> Table:
        """A row per network, on the photos as saved."""
        rows = []
        for model in self.models:
            threshold = "-" if model.threshold is None else f"{model.threshold.value:.3f}"
            numbers = self._numbers(model.as_saved)
            rows.append((starred(model), *numbers.values(), threshold))
        notes = [
            f"{counted(len(self.photos), 'photo')}, {counted(self.distractors, 'distractor')}. "
            "In brackets: the same of the originals, before protection.",
            "accepted: % of pairs of a protected photo and another original that reach the threshold.",
            "own: mean cosine of a protected photo with its original; others: with the other originals.",
            "linked: % of pairs of two protected photos that reach the threshold; lower is better.",
        ]
        if "Top-1" in numbers:
            notes += [
                "linkage: % of pairs where the protected photos match each other first; lower is better.",
                "Top-1, Top-5: % of pairs whose clean photo is not among the 1 or 5 best matches; higher is better.",
            ]
        if any(model.white_box for model in self.models):
            notes.append("* the masks were fitted on this network (white box).")
        return Table("Networks, photos as saved", ("network", *numbers, "threshold"), rows, notes)

    def attack_table(self) -> Table:
        """A row per network: what someone finds who tries more than to compare two photos."""
        columns = self._attacks_known()
        rows = [(starred(model), *_attacks(model.as_saved, columns).values()) for model in self.models]
        notes = ["Posted photos are the protected ones; in brackets the same of the originals."]
        if self.protected_distractors:
            notes.append(f"{counted(self.protected_distractors, 'protected photo')} of other people.")
        notes += [f"{name}: {ATTACKS[name].words}" for name in columns]
        return Table("What someone may try, photos as saved", ("network", *columns), rows, notes)

    def _attacks_known(self) -> list[str]:
        """The columns in which there is a number."""
        cells = [_attacks(model.as_saved, list(ATTACKS)) for model in self.models]
        return [name for name in ATTACKS if any(row[name] != "-" for row in cells)]

    def tables(self) -> list[Table]:
        """The tables of a report."""
        attacks = [self.attack_table()] if self._attacks_known() else []
        return [self.network_table(), *attacks, self.post_processing_table(), self.photo_table()]

    def post_processing_table(self) -> Table:
        """How often each network recognises the person after each post-processing."""
        rows = []
        for i, name in enumerate(self.post_processing):
            row = [name]
            for one in (model.post_processing[i] for model in self.models):
                no_face = f", no face in {one.after.no_face}" if one.after.no_face else ""
                row.append(_recognised_in(one) + no_face)
            rows.append(row)
        notes = [
            "In how many photos the person is recognised; in brackets the originals after the same. "
            "A dash: no threshold is known.",
            "median: of 3x3 pixels. Gaussian: blur of 1 pixel. non-local means: OpenCV's, strength 10. These three are "
            f"tried around the face; one of more than {FILTER_FACE} pixels is made that small first.",
        ]
        return Table("What is left after post-processing", ("photos", *map(starred, self.models)), rows, notes)

    def number_table(self) -> Table:
        """The numbers of `network_table` after each post-processing."""
        rows: list[Sequence[str]] = []
        columns = self._attacks_known()
        for model in self.models:
            rows.append((starred(model),))
            for one in model.post_processing:
                numbers = self._numbers(one) | _attacks(one, columns)
                rows.append((one.name, str(one.after.no_face), *numbers.values()))
        note = "As in the tables above. no face: in how many protected photos none was found."
        return Table("All numbers", ("photos", "no face", *numbers), rows, [note])

    def _numbers(self, one: PostProcessingCheck) -> dict[str, str]:
        after, before = one.after, one.before
        found = _recognised_in(one)
        if True in after.recognised:
            found = Bad(found)
        elif False in after.recognised and not any(photo.unchanged for photo in self.photos):
            found = Good(found)
        numbers = {
            "accepted": _both(percent(after.accepted), percent(before.accepted)),
            "recognised in": found,
            "own": mean(after.own),
            "others": _both(mean(after.others), mean(before.others)),
            "linked": _both(percent(after.linked), percent(before.linked)),
        }
        if self.models[0].as_saved.after.rates is not None:
            for name, rate in (("linkage", "linkage_top1"), ("Top-1", "protection_top1"), ("Top-5", "protection_top5")):
                numbers[name] = _both(*(percent(_rate(side, rate)) for side in (after, before)))
        return numbers

    def photo_table(self) -> Table:
        """A row per photo, as saved: how far its face is from that of the original."""
        header = ("photo", "as saved", "change", "PSNR", "SSIM", "CIEDE2000", "SSIMULACRA2")
        rows = []
        for i, photo in enumerate(self.photos):
            rows.append((plain_name(photo.name), self.verdict(i), *face_quality(photo).values()))
        notes = [
            "Within the face's box. change: largest change of a value, grey levels. PSNR (dB), SSIM (up to 1) and "
            "SSIMULACRA2 (up to 100): higher is closer to the original. CIEDE2000: mean difference of colour, lower is "
            "closer.",
            "These scores disagree: PSNR prefers a mask that is even over the face, SSIM and SSIMULACRA2 one that "
            "follows its texture, and CIEDE2000 hardly tells them apart. Look at the pictures.",
        ]
        return Table("Photos, how far the face is from the original", header, rows, notes, left=2)

    def cosine_table(self, photo: int) -> Table:
        """Cosines of one photo with the originals, on each network after each post-processing."""
        header = ("photo", "verdict", "before", "nearest original", "other originals", "own original")
        name, coloured = plain_name(self.photos[photo].name), not self.photos[photo].unchanged
        rows: list[Sequence[str]] = []
        for model in self.models:
            known = "no threshold known" if model.threshold is None else f"threshold {model.threshold.value:.3f}"
            rows.append((f"{starred(model)}, {known}",))
            for one in model.post_processing:
                after, before = one.after, one.before
                cosines = (
                    _both(mean([after.nearest[photo]]), mean([before.nearest[photo]])),
                    _both(mean([after.others[photo]]), mean([before.others[photo]])),
                    mean([after.own[photo]]),
                )
                rows.append((one.name, _seen(after, photo, coloured), _seen(before, photo, False), *cosines))
        note = "In brackets: the original after the same post-processing."
        return Table(f"Cosines of {name} with the originals", header, rows, [note])

    def table(self) -> str:
        """Lay everything out as text: the summary, the tables of a report, the limits."""
        lines = self.summary()
        if self.photos:
            for table in self.tables():
                lines += ["", *as_text(table)]
            lines.append("")
        return "\n".join([*lines, *self.limits(), *self.omissions()])

    def to_json(self) -> dict[str, Any]:
        """Turn into plain dicts, lists, strings and numbers, ready for `json.dumps`; infinite PSNR becomes null."""
        photos = [{**plain(photo), "verdict": self.verdict(i)} for i, photo in enumerate(self.photos)]
        return {"summary": self.summary(), "limits": self.limits(), **plain(self), "photos": photos}


def face_quality(photo: PhotoCheck) -> dict[str, str]:
    """How far the face is from that of the original, under the names of the scores."""
    return {
        "change": "-" if photo.face_change is None else str(photo.face_change),
        "PSNR": decibel(photo.face_psnr),
        "SSIM": rounded(photo.face_ssim, 3),
        "CIEDE2000": rounded(photo.face_ciede2000, 2),
        "SSIMULACRA2": rounded(photo.face_ssimulacra2, 1),
    }


def starred(model: ModelCheck) -> str:
    """Name a network, with a star if the cloak was fitted on it."""
    return model.model + "*" * bool(model.white_box)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(plain_name, names))


def _cases(sides: Sequence[Side]) -> tuple[int, int]:
    """In how many cases, a photo on a network each, the person is not recognised, and of how many."""
    judged = [one for side in sides for one in side.recognised if one is not None]
    return judged.count(False), len(judged)


def _of(cases: tuple[int, int]) -> str:
    return f"{cases[0]} of {counted(cases[1], 'case')}"


def _both(after: str, before: str) -> str:
    return "-" if after == before == "-" else f"{after} ({before})"


def _rate(side: Side, name: str) -> float | None:
    """A rate at the threshold or of ranks; of these there are none where fewer than two faces are found."""
    rate: float | None = getattr(side, name, getattr(side.rates, name, None))
    return rate


def _attacks(one: PostProcessingCheck, columns: Sequence[str]) -> dict[str, str]:
    cells = {}
    for column in columns:
        attack = ATTACKS[column]
        cells[column] = _both(*(attack.written(_rate(side, attack.rate)) for side in (one.after, one.before)))
        if attack.rate == "impersonation" and _impersonates(one):
            cells[column] = Bad(cells[column])
    return cells


def _impersonates(one: PostProcessingCheck) -> bool:
    """Whether protected photos are taken for strangers more often than the originals."""
    after, before = one.after.impersonation, one.before.impersonation
    return after is not None and before is not None and after > before


def _recognised_in(one: PostProcessingCheck) -> str:
    sides = []
    for side in (one.after, one.before):
        hidden, judged = _cases([side])
        sides.append(f"{judged - hidden} of {judged}" if judged else "-")
    return _both(*sides)


def _seen(side: Side, photo: int, coloured: bool) -> str:
    recognised = side.recognised[photo]
    if side.own[photo] is None:
        return "no face found"
    if recognised is None:
        return "-"
    words, tone = ("recognised", Bad) if recognised else ("not recognised", Good)
    return tone(words) if coloured else words
