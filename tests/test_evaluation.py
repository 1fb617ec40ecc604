"""The rates of OPOM's protocol, counted on paper and by plain loops, and what an evaluation refuses."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from fastcloak import Cloak, evaluate
from fastcloak.evaluation.protocol import embed, evaluate_photos, protection_ranks, random_mask
from fastcloak.protection.enrolment import VERIFICATION_THRESHOLDS
from tests.judges import flat, network, noise

EPS = 8 / 255


class Projection(nn.Module):
    """A random linear map of the pixels, which sees the smallest change."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randn(37632, 16, generator=torch.Generator().manual_seed(0)))

    def forward(self, faces):
        return (faces - 0.5).flatten(1) @ self.weight


class NaNWhenRed(nn.Module):
    def forward(self, faces):
        red = faces[:, 0].mean((1, 2))
        return torch.stack((torch.where(red > 0.9, torch.nan, red), 1 - red), dim=1)


def cloak(red=0, *, eps=EPS, models=()):
    delta = torch.zeros(3, 112, 112)
    # A little less than `red` grey levels: the float32 nearest to 8 / 255 lies above 8 / 255.
    delta[0] = 0.9999 * red / 255
    return Cloak(delta, eps, {"models": list(models)})


def ranked(rates):
    return rates.protection_top1, rates.protection_top5, rates.linkage_top1


def row_of(evaluation, mask, model="rg"):
    (row,) = [row for row in evaluation.rows if (row.model, row.mask) == (model, mask)]
    return row


# Angles of (red, green), degrees: ann 0 and 45; bob 90, 88.85, 89.43; strangers 26.6 and 86.85.
#   clean ann: 0 -> 45 is beaten by 26.6 (rank 2); 45 -> 0 by 26.6 and 86.85 (rank 3).
#   clean bob: no stranger is nearer than 2 degrees to any of them: every rank is 1.
#   bob + 8 red: 87.70, 86.57, 87.14. The stranger at 86.85 is nearer to each than any clean bob: every rank is 2.
#   bob + 8 red among themselves: 87.70 -> 87.14 beats the stranger (0.56 < 0.85), the other five pairs do not.
PROBES = {"ann": flat((200, 0), (100, 100)), "bob": flat((0, 200), (4, 200), (2, 200))}
STRANGERS = flat((200, 100), (11, 200))
CLOAKS = {"ann": cloak(), "bob": cloak(red=8)}
RG, PROJECTION = network("rg"), network("projection", Projection)


def test_ranks_counted_on_paper():
    probe = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    gallery = torch.tensor([[0.6, 0.8], [0.8, 0.6], [1.0, 0.0]])
    distractors = torch.tensor([[0.8, -0.6], [0.0, 1.0], [0.28, 0.96]])
    # Probe (1, 0) sees targets at 0.6, 0.8, 1 and distractors at 0.8, 0, 0.28 (a tie with the second target, which
    # does not push it back); probe (0, 1) sees targets at 0.8, 0.6, 0 and distractors at -0.6, 1, 0.96.
    assert protection_ranks(probe, gallery, distractors).tolist() == [[2, 1, 1], [3, 3, 3]]


def test_rows_equal_a_hand_count():
    evaluation = evaluate(CLOAKS, PROBES, RG, STRANGERS, label="red")
    assert (evaluation.people, evaluation.pairs, evaluation.distractors) == (("ann", "bob"), 8, 2)
    clean, red, random = (row_of(evaluation, mask) for mask in ("clean", "red", "random"))
    assert ranked(clean.per_person["ann"]) == (1.0, 0.0, 0.0)
    assert ranked(clean.per_person["bob"]) == (0.0, 0.0, 1.0)
    assert clean.per_person["ann"].mean_similarity == pytest.approx(0.5**0.5)
    # ann has 2 pairs and bob 6, and both weigh the same.
    assert ranked(clean) == (0.5, 0.0, 0.5)
    assert ranked(red.per_person["ann"]) == ranked(clean.per_person["ann"])
    assert ranked(red.per_person["bob"]) == pytest.approx((1.0, 0.0, 1 / 6))
    assert (red.protection_top1, red.protection_top5) == (1.0, 0.0)
    assert red.linkage_top1 == pytest.approx(1 / 12)
    assert (clean.largest_change, red.largest_change, random.largest_change) == (0, 8, 8)


def test_rows_equal_a_loop_over_people_and_pairs():
    probes = {"ann": noise(3, 1), "bob": noise(4, 2), "eve": noise(2, 3)}
    masks = {name: (torch.rand(3, 112, 112, generator=torch.Generator().manual_seed(9)) - 0.5) / 2 for name in probes}
    cloaks = {name: Cloak(delta, 0.25) for name, delta in masks.items()}
    row = row_of(evaluate(cloaks, probes, PROJECTION, None, batch_size=2), "cloak", "projection")
    clean = {name: embed(PROJECTION, faces) for name, faces in probes.items()}
    posted = {name: ((faces / 255 + masks[name]).clamp(0, 1) * 255).round() / 255 for name, faces in probes.items()}
    for name, faces in probes.items():
        z = embed(PROJECTION, posted[name])
        crowd = [feature for other in probes if other != name for feature in clean[other]]
        cloaked = [feature for other in probes if other != name for feature in embed(PROJECTION, posted[other])]
        top1 = top5 = linked = mixed_top1 = mixed_linked = pairs = 0
        for i in range(len(faces)):
            for j in set(range(len(faces))) - {i}:
                pairs += 1
                nearer = sum(float(z[i] @ x) > float(z[i] @ clean[name][j]) for x in crowd)
                top1 += nearer >= 1
                top5 += nearer >= 5
                linked += all(float(z[i] @ x) <= float(z[i] @ z[j]) for x in crowd)
                mixed_top1 += any(float(z[i] @ x) > float(z[i] @ clean[name][j]) for x in (*crowd, *cloaked))
                mixed_linked += all(float(z[i] @ x) <= float(z[i] @ z[j]) for x in (*crowd, *cloaked))
        assert ranked(row.per_person[name]) == pytest.approx((top1 / pairs, top5 / pairs, linked / pairs))
        mixed = row.per_person[name].mixed_top1, row.per_person[name].mixed_linkage
        assert mixed == pytest.approx((mixed_top1 / pairs, mixed_linked / pairs))


def test_rows_say_what_a_network_accepts_at_its_threshold():
    # Of sface, 67.98 degrees. Everyone is red or green; strangers are green, and so is ann with her cloak.
    probes = {"ann": flat((200, 0), (200, 10), (200, 20)), "bob": flat((0, 200), (10, 200))}
    green = {"ann": flat((0, 200), (200, 0), (0, 200)), "bob": probes["bob"]}
    judge = network("sface")
    evaluation = evaluate_photos(probes, {"green": green}, judge, flat((0, 100), (20, 200)))
    clean, row = row_of(evaluation, "clean", "sface"), row_of(evaluation, "green", "sface")
    assert row.threshold.value == clean.threshold.value == VERIFICATION_THRESHOLDS["sface"]
    assert {name: rates.accepted for name, rates in clean.per_person.items()} == {"ann": 1, "bob": 1}
    # Of six pairs, those of her second photo are accepted; of pairs of two posted ones, those of the first and third.
    assert row.per_person["ann"].accepted == pytest.approx(1 / 3)
    assert row.per_person["ann"].linked == pytest.approx(1 / 3)
    # The first and the third original find the second photo, which finds no more; the second original finds nothing.
    assert row.per_person["ann"].tracked == pytest.approx((1 / 2 + 0 + 1 / 2) / 3)
    assert row.per_person["ann"].template == pytest.approx(1 / 3)
    assert (clean.impersonation, row.impersonation) == (0.5, pytest.approx((2 / 3 + 1) / 2))
    assert row.accepted == pytest.approx((1 / 3 + 1) / 2)
    # Protected photos of the others: bob is as green as ann, so that her pairs are found less often.
    assert row.per_person["ann"].mixed_linkage <= row.per_person["ann"].linkage_top1
    table = evaluation.table()
    assert table.splitlines()[2].split()[:4] == ["sface", "green", "200", "66.7"]
    assert "What someone may try:\nmodel  mask   tracked  template  Top-1 mixed  linkage mixed  somebody else" in table
    assert "sface: threshold 0.375, which 1 in 1,000 pairs of different people of LFW reach." in table


def test_a_threshold_is_estimated_from_clean_photos_and_distractors_where_they_are_enough():
    probes, strangers = {"ann": noise(2, 1), "bob": noise(2, 2)}, noise(750, 3)
    cloaks = dict.fromkeys(probes, cloak())
    (clean, *_) = evaluate(cloaks, probes, PROJECTION, strangers).rows
    assert "3 of 3000 pairs" in clean.threshold.origin
    assert clean.impersonation == pytest.approx(1e-3)
    (clean, *_) = evaluate(cloaks, probes, PROJECTION, strangers[1:]).rows
    assert (clean.threshold, clean.accepted, clean.impersonation) == (None, None, None)
    assert (clean.mixed_top1, clean.mixed_linkage) == pytest.approx((clean.protection_top1, clean.linkage_top1), abs=1)
    alone = evaluate({"ann": cloak()}, {"ann": probes["ann"]}, PROJECTION, strangers)
    assert "no threshold is known" in alone.table()
    assert "What someone may try" not in alone.table()
    assert alone.rows[0].mixed_top1 is None


def test_random_mask_is_plus_or_minus_eps_everywhere_and_seeded():
    mask = random_mask(cloak(), "ann", 0).delta
    assert torch.equal(mask.abs(), torch.full((3, 112, 112), EPS))
    assert 0.49 < (mask > 0).float().mean() < 0.51
    assert torch.equal(mask, random_mask(cloak(red=8), "ann", 0).delta)
    assert not torch.equal(mask, random_mask(cloak(), "bob", 0).delta)
    assert not torch.equal(mask, random_mask(cloak(), "ann", 1).delta)
    assert torch.equal(random_mask(cloak(), 7).delta, random_mask(cloak(), "7").delta)
    for seed in (-(2**63), 2**63 - 1):
        random_mask(cloak(), "ann", seed)


def test_white_box_marks_only_the_mask_fitted_on_that_model():
    cloaks = {"ann": cloak(models=("a", "b")), "bob": cloak(models=("b",))}
    models = [network(name, Projection) for name in "abc"]
    marked = {(row.model, row.mask) for row in evaluate(cloaks, PROBES, models).rows if row.white_box}
    assert marked == {("a", "cloak"), ("b", "cloak")}
    ensemble = row_of(evaluate(cloaks, PROBES, [models[1:]]), "cloak", "b+c")
    assert ensemble.white_box


def test_a_person_is_not_their_own_distractor():
    named = evaluate(CLOAKS, PROBES, RG, {"bob": PROBES["bob"], "zoe": STRANGERS})
    assert named.distractors == 2
    unnamed = evaluate(CLOAKS, PROBES, RG, STRANGERS)
    assert row_of(named, "cloak").per_person["bob"] == row_of(unnamed, "cloak").per_person["bob"]


@pytest.mark.parametrize("nobody", [None, [], {}, torch.zeros(0, 3, 112, 112), {"zoe": []}])
def test_without_distractors_the_other_people_are_the_distractors(nobody):
    evaluation = evaluate(CLOAKS, PROBES, RG, nobody)
    assert evaluation.distractors == 2
    assert evaluation == evaluate(CLOAKS, PROBES, RG, PROBES)


def test_evaluations_add_up_without_repeating_controls():
    models = [RG, PROJECTION]
    red = evaluate(CLOAKS, PROBES, models, STRANGERS, label="red")
    none = evaluate(dict.fromkeys(PROBES, cloak()), PROBES, models, STRANGERS, label="none")
    both = red + none
    names = ("rg", "projection")
    assert [(row.model, row.mask) for row in both.rows] == [
        *((model, mask) for model in names for mask in ("clean", "random", "red")),
        *((model, "none") for model in names),
    ]
    assert set(map(id, red.rows)) < set(map(id, both.rows))
    # The table keeps the rows of a model together.
    assert [line.split()[:2] for line in both.table().splitlines()[1:9]] == [
        [model, mask] for model in names for mask in ("clean", "random", "red", "none")
    ]
    # Another strength is another control; another model is no repetition.
    weak = evaluate(dict.fromkeys(PROBES, cloak(eps=4 / 255)), PROBES, RG, STRANGERS, label="weak")
    assert [row.largest_change for row in (red + weak).rows if (row.model, row.mask) == ("rg", "random")] == [8, 4]
    with pytest.raises(ValueError, match=r"both evaluations hold mask 'red' on 'rg'; give them different labels"):
        red + red
    with pytest.raises(ValueError, match=r"must agree on distractors, got 2 and 1"):
        red + evaluate(CLOAKS, PROBES, RG, STRANGERS[:1], label="other")
    with pytest.raises(ValueError, match=r"must agree on people"):
        red + evaluate({"ann": cloak()}, {"ann": PROBES["ann"]}, RG, STRANGERS, label="other")


def test_table_and_json_hold_the_numbers():
    cloaks = {"ann": cloak(models=("rg",)), "bob": cloak(red=8)}
    evaluation = evaluate(cloaks, PROBES, RG, STRANGERS, label="red")
    table = evaluation.table()
    lines = table.splitlines()
    assert lines[0] == "model  mask    change  accepted  Top-1  Top-5  linkage  linked  cosine"
    assert lines[1].startswith("rg     clean        0         -   50.0    0.0     50.0       -   0.85")
    assert lines[3].startswith("rg*    red          8         -  100.0    0.0      8.3       -   0.8")
    assert "2 people, 8 pairs, each against 2 or more distractors" in table
    assert table.isascii()
    written = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert written == evaluation.to_json()
    assert written["people"] == ["ann", "bob"]
    assert written["rows"][2]["per_person"]["bob"]["linkage_top1"] == pytest.approx(1 / 6)
    assert [row["white_box"] for row in written["rows"]] == [False, False, True]


@pytest.mark.promise("P5")
def test_same_seed_gives_the_same_evaluation_and_leaves_inputs_and_generators_unchanged():
    probes = {"ann": noise(3, 1), "bob": noise(3, 2)}
    cloaks = dict.fromkeys(probes, cloak())
    before = {name: faces.clone() for name, faces in probes.items()}
    state = torch.get_rng_state()
    first = evaluate(cloaks, probes, PROJECTION, seed=3)
    # Whole numbers of numpy are taken too.
    assert first == evaluate(cloaks, probes, PROJECTION, seed=np.int32(3), batch_size=np.int64(32))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], probes[name]) for name in probes)


def test_names_may_be_anything_that_a_dict_takes():
    names = (7, ("bob", 2), "\udcff")
    probes = dict(zip(names, (*PROBES.values(), PROBES["ann"]), strict=True))
    evaluation = evaluate(dict.fromkeys(names, cloak()), probes, RG, STRANGERS)
    assert evaluation.people == names
    json.dumps(evaluation.to_json())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"probes": {**PROBES, "ann": flat((1, 2))}}, r"'ann' must have 2 or more probe photos to form a pair, got 1"),
        ({"probes": {**PROBES, "bob": []}}, r"'bob' must have 2 or more probe photos to form a pair, got 0"),
        ({"cloaks": {}, "probes": {}}, r"at least one person, got none"),
        ({"probes": {"ann": STRANGERS, "zoe": STRANGERS}}, r"no cloak for \['zoe'\] and no probes for \['bob'\]"),
        ({"cloaks": {}, "probes": {"zoe": STRANGERS, 7: STRANGERS}}, r"no cloak for \[7, 'zoe'\]"),
        ({"distractors": {"ann": STRANGERS}}, r"people other than 'ann', got none"),
        ({"distractors": ""}, "must not be the empty path, got ''; name a folder, or pass None for none"),
        ({"distractors": {"zoe": ""}}, "must not be the empty path"),
        ({"models": [RG, network("rg", Projection)]}, r"a name of its own, got \['rg', 'rg'\]"),
        ({"models": []}, "models must be one or more"),
        ({"label": "clean"}, "label 'clean' is the name of a control row"),
        ({"label": "random"}, "label 'random' is the name of a control row"),
        *(
            ({"batch_size": size}, "batch_size must be a whole number, 1 or more, got")
            for size in (0, -1, 2.0, True, "2", None)
        ),
        *(({"seed": seed}, "seed must be a whole number") for seed in (1.0, "1", None, True, 2**63, -(2**63) - 1)),
        ({"cloaks": cloak()}, "cloaks must be a mapping of a person's name -> Cloak, got Cloak"),
        ({"cloaks": [cloak()]}, "cloaks must be a mapping .* got list"),
        ({"cloaks": {"ann": "me.safetensors", "bob": cloak()}}, r"cloaks\['ann'\] must be a Cloak, got str; fastcloak"),
        ({"probes": PROBES["ann"]}, "probes must be a mapping of a person's name -> photos, got Tensor"),
    ],
)
def test_evaluate_refuses(changed, words):
    arguments = {"cloaks": CLOAKS, "probes": PROBES, "models": RG, "distractors": STRANGERS, **changed}
    with pytest.raises(TypeError if "mapping" in words or "must be a Cloak" in words else ValueError, match=words):
        evaluate(**arguments)


def test_one_person_needs_distractors_and_helpers_need_whole_numbers():
    with pytest.raises(ValueError, match=r"distractors must hold photos of people other than 'ann', got none"):
        evaluate({"ann": cloak()}, {"ann": PROBES["ann"]}, RG)
    with pytest.raises(ValueError, match="batch_size must be a whole number, 1 or more, got 0"):
        evaluate_photos(PROBES, {}, RG, batch_size=0)
    with pytest.raises(ValueError, match="batch_size must be a whole number, 1 or more, got True"):
        embed(RG, PROBES["bob"], batch_size=True)
    with pytest.raises(ValueError, match="seed must be a whole number"):
        random_mask(cloak(), "ann", 2**63)


def test_an_embedding_without_direction_names_model_and_person():
    broken = network("broken", NaNWhenRed)
    with pytest.raises(FloatingPointError, match=r"clean pictures of 'bob': broken must .* for face 1"):
        evaluate(CLOAKS, {"ann": PROBES["ann"], "bob": flat((0, 0), (250, 0))}, broken, STRANGERS)
    with pytest.raises(FloatingPointError, match=r"distractor pictures: broken must .* for face 0"):
        evaluate(CLOAKS, PROBES, broken, flat((250, 0)))
    with pytest.raises(FloatingPointError, match=r"photos of 'ann': rg must .* for face 1"):
        embed(RG, flat((1, 1), (0, 0)), owner="photos of 'ann'")


def test_evaluate_photos_judges_given_pictures():
    shifted = {name: CLOAKS[name].apply(faces) for name, faces in PROBES.items()}
    given = evaluate_photos(PROBES, {"red": shifted}, RG, STRANGERS, fitted_on={"red": ["rg"]})
    whole = evaluate(CLOAKS, PROBES, RG, STRANGERS)
    assert row_of(given, "red").per_person == row_of(whole, "cloak").per_person
    assert row_of(given, "red").white_box
    with pytest.raises(ValueError, match=r"'red' pictures of 'bob' must match the originals one to one, got 2 for 3"):
        evaluate_photos(PROBES, {"red": {**shifted, "bob": shifted["bob"][:2]}}, RG)
    with pytest.raises(ValueError, match=r"'red' must hold the people of the originals, got differences \['bob'\]"):
        evaluate_photos(PROBES, {"red": {"ann": shifted["ann"]}}, RG)
    with pytest.raises(TypeError, match=r"originals must be a mapping"):
        evaluate_photos([PROBES["ann"]], {}, RG)
    with pytest.raises(TypeError, match=r"protected\['red'\] must be a mapping"):
        evaluate_photos(PROBES, {"red": PROBES["ann"]}, RG)


def test_embed_gives_unit_rows_whatever_the_batch_size():
    faces = noise(5, 1)
    whole = embed(PROJECTION, faces)
    assert whole.shape == (5, 16)
    assert not whole.requires_grad
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(embed(PROJECTION, faces, batch_size=2), whole)
    assert torch.equal(embed(PROJECTION, faces / 255), whole)
