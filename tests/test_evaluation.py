import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastcloak.cloak import Cloak
from fastcloak.evaluation.protocol import embed, evaluate, evaluate_photos, protection_ranks, random_mask
from fastcloak.evaluation.results import Evaluation, Row
from fastcloak.models import Surrogate, load_model

EPS = 8 / 255


class RedGreen(nn.Module):
    """Embeds a picture as (mean red, mean green): every angle can be worked out on paper."""

    def forward(self, faces: Tensor) -> Tensor:
        return faces[:, :2].mean((2, 3))


class Projection(nn.Module):
    """A random linear map of the pixels, which sees the smallest change."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        weight = torch.randn(3 * 112 * 112, 16, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("weight", weight)

    def forward(self, faces: Tensor) -> Tensor:
        return (faces - 0.5).flatten(1) @ self.weight


class NaNWhenRed(nn.Module):
    def forward(self, faces: Tensor) -> Tensor:
        red = faces[:, 0].mean((1, 2))
        return torch.stack((torch.where(red > 0.9, torch.nan, red), 1 - red), dim=1)


def network(name: str, module: nn.Module) -> Surrogate:
    return load_model(module, name=name)


def photos(*colours: tuple[int, int]) -> Tensor:
    faces = torch.zeros(len(colours), 3, 112, 112, dtype=torch.uint8)
    faces[:, :2] = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None]
    return faces


def cloak(red: int = 0, *, eps: float = EPS, models: tuple[str, ...] = ()) -> Cloak:
    delta = torch.zeros(3, 112, 112)
    # A little less than `red` grey levels: the float32 nearest to 8 / 255 lies above 8 / 255.
    delta[0] = 0.9999 * red / 255
    return Cloak(delta, eps, {"models": list(models)})


def noise(n: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def unit(n: int, d: int, seed: int) -> Tensor:
    return nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def row_of(evaluation: Evaluation, model: str, mask: str) -> Row:
    (row,) = [row for row in evaluation.rows if (row.model, row.mask) == (model, mask)]
    return row


# Angles of (red, green), degrees: ann 0 and 45; bob 90, 88.85, 89.43; strangers 26.6 and 86.85.
#   clean ann: 0 -> 45 is beaten by 26.6 (rank 2); 45 -> 0 by 26.6 and 86.85 (rank 3).
#   clean bob: no stranger is nearer than 2 degrees to any of them: every rank is 1.
#   bob + 8 red: 87.70, 86.57, 87.14. The stranger at 86.85 is nearer to each than any clean bob: every rank is 2.
#   bob + 8 red among themselves: 87.70 -> 87.14 beats the stranger (0.56 < 0.85), the other five pairs do not.
PROBES = {"ann": photos((200, 0), (100, 100)), "bob": photos((0, 200), (4, 200), (2, 200))}
STRANGERS = photos((200, 100), (11, 200))
CLOAKS = {"ann": cloak(), "bob": cloak(red=8)}


def test_ranks_counted_on_paper() -> None:
    probe = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    gallery = torch.tensor([[0.6, 0.8], [0.8, 0.6], [1.0, 0.0]])
    distractors = torch.tensor([[0.8, -0.6], [0.0, 1.0], [0.28, 0.96]])
    # Probe (1, 0) sees targets at 0.6, 0.8, 1 and distractors at 0.8, 0, 0.28 (a tie with the second target);
    # probe (0, 1) sees targets at 0.8, 0.6, 0 and distractors at -0.6, 1, 0.96.
    assert protection_ranks(probe, gallery, distractors).tolist() == [[2, 1, 1], [3, 3, 3]]


def test_a_tie_does_not_push_the_target_back() -> None:
    probe, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    assert protection_ranks(probe, target, torch.tensor([[0.6, -0.8]] * 7)).tolist() == [[1]]


@pytest.mark.parametrize(("nearer", "top5"), [(4, 0.0), (5, 1.0)])
def test_top5_protection_needs_five_nearer_distractors(nearer: int, top5: float) -> None:
    # All distractors lie between the two photos of ann: both pairs have rank 1 + nearer.
    between = photos(*[(200, 10 * (i + 1)) for i in range(nearer)])
    evaluation = evaluate({"ann": cloak()}, {"ann": photos((200, 0), (200, 100))}, network("rg", RedGreen()), between)
    assert row_of(evaluation, "rg", "clean").per_person["ann"][:2] == (1.0, top5)


@pytest.mark.parametrize(("n", "m", "d"), [(2, 1, 1), (3, 37, 63), (10, 101, 512)])
def test_ranks_equal_a_loop_over_pairs(n: int, m: int, d: int) -> None:
    probe, gallery, distractors = unit(n, d, 1), unit(n + 1, d, 2), unit(m, d, 3)
    if d == 1:
        # In one dimension every cosine is +-1: all ties.
        probe, gallery, distractors = probe.sign(), gallery.sign(), distractors.sign()
    expected = [[1 + sum(float(p @ x) > float(p @ g) for x in distractors) for g in gallery] for p in probe]
    assert protection_ranks(probe, gallery, distractors).tolist() == expected


def test_clean_control_equals_a_hand_count() -> None:
    row = row_of(evaluate(CLOAKS, PROBES, network("rg", RedGreen()), STRANGERS), "rg", "clean")
    assert row.per_person["ann"][:3] == (1.0, 0.0, 0.0)
    assert row.per_person["bob"][:3] == (0.0, 0.0, 1.0)
    assert row.per_person["ann"].mean_similarity == pytest.approx(0.5**0.5)
    # ann has 2 pairs and bob 6, and both weigh the same.
    assert (row.protection_top1, row.protection_top5, row.linkage_top1) == (0.5, 0.0, 0.5)
    assert row.largest_change == 0


def test_cloaked_rows_equal_a_hand_count() -> None:
    evaluation = evaluate(CLOAKS, PROBES, network("rg", RedGreen()), STRANGERS, label="red")
    row = row_of(evaluation, "rg", "red")
    assert row.per_person["ann"] == row_of(evaluation, "rg", "clean").per_person["ann"]
    assert row.per_person["bob"][:3] == pytest.approx((1.0, 0.0, 1 / 6))
    assert (row.protection_top1, row.protection_top5) == (1.0, 0.0)
    assert row.linkage_top1 == pytest.approx(1 / 12)
    assert row.largest_change == 8
    assert (evaluation.people, evaluation.pairs, evaluation.distractors) == (("ann", "bob"), 8, 2)


def test_rows_equal_a_loop_over_people_and_pairs() -> None:
    probes = {"ann": noise(3, 1), "bob": noise(4, 2), "eve": noise(2, 3)}
    net = network("projection", Projection())
    masks = {name: (torch.rand(3, 112, 112, generator=torch.Generator().manual_seed(9)) - 0.5) / 2 for name in probes}
    cloaks = {name: Cloak(delta, 0.25) for name, delta in masks.items()}
    row = row_of(evaluate(cloaks, probes, net, None, batch_size=2), "projection", "cloak")

    clean = {name: embed(net, faces) for name, faces in probes.items()}
    for name, faces in probes.items():
        posted = ((faces / 255 + masks[name]).clamp(0, 1) * 255).round() / 255
        z = embed(net, posted)
        crowd = [feature for other in probes if other != name for feature in clean[other]]
        top1 = top5 = linked = pairs = 0
        for i in range(len(faces)):
            for j in range(len(faces)):
                if i == j:
                    continue
                pairs += 1
                nearer = sum(float(z[i] @ x) > float(z[i] @ clean[name][j]) for x in crowd)
                top1 += nearer >= 1
                top5 += nearer >= 5
                linked += all(float(z[i] @ x) <= float(z[i] @ z[j]) for x in crowd)
        assert row.per_person[name][:3] == pytest.approx((top1 / pairs, top5 / pairs, linked / pairs))


def test_pictures_are_rounded_before_the_networks_see_them() -> None:
    probes = {"ann": noise(3, 1), "bob": noise(3, 2)}
    faint = Cloak(torch.full((3, 112, 112), 0.4 / 255), 1 / 255)
    evaluation = evaluate(dict.fromkeys(probes, faint), probes, network("projection", Projection()))
    clean, cloaked = (row_of(evaluation, "projection", mask) for mask in ("clean", "cloak"))
    assert cloaked.largest_change == 0
    assert cloaked.per_person == clean.per_person


def test_random_mask_is_plus_or_minus_eps_everywhere_and_seeded() -> None:
    mask = random_mask(cloak(), "ann", 0).delta
    assert torch.equal(mask.abs(), torch.full((3, 112, 112), EPS))
    assert 0.49 < (mask > 0).float().mean() < 0.51
    assert torch.equal(mask, random_mask(cloak(red=8), "ann", 0).delta)
    assert not torch.equal(mask, random_mask(cloak(), "bob", 0).delta)
    assert not torch.equal(mask, random_mask(cloak(), "ann", 1).delta)
    assert row_of(evaluate(CLOAKS, PROBES, network("rg", RedGreen()), STRANGERS), "rg", "random").largest_change == 8


def test_white_box_marks_only_the_mask_learnt_on_that_model() -> None:
    cloaks = {"ann": cloak(models=("a", "b")), "bob": cloak(models=("b",))}
    models = [network(name, Projection(seed)) for seed, name in enumerate("abc")]
    evaluation = evaluate(cloaks, PROBES, models)
    marked = {(row.model, row.mask) for row in evaluation.rows if row.white_box}
    assert marked == {("a", "cloak"), ("b", "cloak")}
    (ensemble,) = [row for row in evaluate(cloaks, PROBES, [models[1:]]).rows if row.mask == "cloak"]
    assert (ensemble.model, ensemble.white_box) == ("b+c", True)


def test_a_person_is_not_their_own_distractor() -> None:
    net = network("rg", RedGreen())
    named = evaluate(CLOAKS, PROBES, net, {"bob": PROBES["bob"], "zoe": STRANGERS})
    assert named.distractors == 2
    unnamed = evaluate(CLOAKS, PROBES, net, STRANGERS)
    assert row_of(named, "rg", "cloak").per_person["bob"] == row_of(unnamed, "rg", "cloak").per_person["bob"]


@pytest.mark.parametrize("nobody", [None, [], {}, torch.zeros(0, 3, 112, 112), {"zoe": []}])
def test_without_distractors_the_other_people_are_the_distractors(nobody: object) -> None:
    net = network("rg", RedGreen())
    evaluation = evaluate(CLOAKS, PROBES, net, nobody)
    assert evaluation.distractors == 2
    assert evaluation == evaluate(CLOAKS, PROBES, net, PROBES)


def test_evaluations_add_up_without_repeating_controls() -> None:
    a, b = network("a", RedGreen()), network("b", Projection())
    red = evaluate(CLOAKS, PROBES, [a, b], STRANGERS, label="red")
    none = evaluate(dict.fromkeys(PROBES, cloak()), PROBES, [a, b], STRANGERS, label="none")
    both = red + none
    assert [(row.model, row.mask) for row in both.rows] == [
        *[(model, mask) for model in "ab" for mask in ("clean", "random", "red")],
        ("a", "none"),
        ("b", "none"),
    ]
    assert set(map(id, red.rows)) < set(map(id, both.rows))
    # Another strength is another control; another model is no repetition.
    weak = evaluate(dict.fromkeys(PROBES, cloak(eps=4 / 255)), PROBES, a, STRANGERS, label="weak")
    assert [row.largest_change for row in (red + weak).rows if (row.model, row.mask) == ("a", "random")] == [8, 4]
    on_a, on_b = (evaluate(CLOAKS, PROBES, net, STRANGERS) for net in (a, b))
    assert len((on_a + on_b).rows) == 6


def test_adding_what_does_not_fit_raises() -> None:
    net = network("rg", RedGreen())
    one = evaluate(CLOAKS, PROBES, net, STRANGERS)
    with pytest.raises(ValueError, match=r"both evaluations hold mask 'cloak' on 'rg'; give them different labels"):
        one + one
    with pytest.raises(ValueError, match=r"must agree on distractors, got 2 and 1"):
        one + evaluate(CLOAKS, PROBES, net, STRANGERS[:1], label="other")
    with pytest.raises(ValueError, match=r"must agree on people"):
        one + evaluate({"ann": cloak()}, {"ann": PROBES["ann"]}, net, STRANGERS, label="other")


def test_table_text() -> None:
    cloaks = {"ann": cloak(models=("rg",)), "bob": cloak(red=8)}
    table = evaluate(cloaks, PROBES, network("rg", RedGreen()), STRANGERS, label="red").table()
    lines = table.splitlines()
    assert lines[0] == "model  mask    change  Top-1  Top-5  linkage  cosine"
    assert lines[1].startswith("rg     clean        0   50.0    0.0     50.0   0.85")
    assert lines[3].startswith("rg*    red          8  100.0    0.0      8.3   0.8")
    assert "2 people, 8 pairs, each against 2 or more distractors" in table
    assert table.isascii()


def test_table_keeps_the_rows_of_a_model_together() -> None:
    models = [network("a", RedGreen()), network("b", Projection())]
    merged = evaluate(CLOAKS, PROBES, models, label="x") + evaluate(CLOAKS, PROBES, models, label="y")
    assert [line.split()[:2] for line in merged.table().splitlines()[1:9]] == [
        [model, mask] for model in "ab" for mask in ("clean", "random", "x", "y")
    ]


def test_json_is_plain_and_complete() -> None:
    evaluation = evaluate(CLOAKS, PROBES, network("rg", RedGreen()), STRANGERS)
    read = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert read == evaluation.to_json()
    assert read["people"] == ["ann", "bob"]
    assert read["rows"][2]["per_person"]["bob"]["linkage_top1"] == pytest.approx(1 / 6)
    assert read["rows"][2]["white_box"] is False


def test_same_seed_gives_the_same_evaluation() -> None:
    probes = {"ann": noise(3, 1), "bob": noise(3, 2)}
    cloaks = dict.fromkeys(probes, cloak())
    net = network("projection", Projection())
    before = {name: faces.clone() for name, faces in probes.items()}
    state = torch.get_rng_state()
    assert evaluate(cloaks, probes, net, seed=3) == evaluate(cloaks, probes, net, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], probes[name]) for name in probes)


def test_one_photo_raises() -> None:
    with pytest.raises(ValueError, match=r"'ann' must have 2 or more probe photos to form a pair, got 1"):
        evaluate(CLOAKS, {**PROBES, "ann": photos((1, 2))}, network("rg", RedGreen()), STRANGERS)
    with pytest.raises(ValueError, match=r"'bob' must have 2 or more probe photos to form a pair, got 0"):
        evaluate(CLOAKS, {**PROBES, "bob": []}, network("rg", RedGreen()), STRANGERS)


def test_nobody_raises() -> None:
    with pytest.raises(ValueError, match=r"at least one person, got none"):
        evaluate({}, {}, network("rg", RedGreen()), STRANGERS)


def test_different_names_raise_and_are_named() -> None:
    with pytest.raises(ValueError, match=r"no cloak for \['zoe'\] and no probes for \['bob'\]"):
        evaluate(CLOAKS, {"ann": PROBES["ann"], "zoe": STRANGERS}, network("rg", RedGreen()))


def test_no_distractors_raise() -> None:
    with pytest.raises(ValueError, match=r"distractors must hold photos of people other than 'ann', got none"):
        evaluate({"ann": cloak()}, {"ann": PROBES["ann"]}, network("rg", RedGreen()))
    with pytest.raises(ValueError, match=r"people other than 'ann', got none"):
        evaluate(CLOAKS, PROBES, network("rg", RedGreen()), {"ann": PROBES["ann"]})


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "2", None])
def test_batch_size_must_be_a_whole_number(batch_size: object) -> None:
    net = network("rg", RedGreen())
    for judge in (
        lambda: evaluate(CLOAKS, PROBES, net, batch_size=batch_size),
        lambda: evaluate_photos(PROBES, {}, net, batch_size=batch_size),
        lambda: embed(net, PROBES["bob"], batch_size=batch_size),
    ):
        with pytest.raises(ValueError, match="batch_size must be a whole number, 1 or more, got"):
            judge()


@pytest.mark.parametrize("seed", [1.0, "1", None, True, 2**63, -(2**63) - 1])
def test_seed_must_be_a_whole_number(seed: object) -> None:
    with pytest.raises(ValueError, match="seed must be a whole number"):
        evaluate(CLOAKS, PROBES, network("rg", RedGreen()), seed=seed)
    with pytest.raises(ValueError, match="seed must be a whole number"):
        random_mask(cloak(), "ann", seed)


def test_numbers_of_numpy_and_the_largest_seeds_are_taken() -> None:
    net = network("rg", RedGreen())
    assert evaluate(CLOAKS, PROBES, net, batch_size=np.int64(2), seed=np.int32(0)) == evaluate(CLOAKS, PROBES, net)
    for seed in (-(2**63), 2**63 - 1):
        random_mask(cloak(), "ann", seed)


def test_names_may_be_anything_that_a_dict_takes() -> None:
    names = (7, ("bob", 2), "\udcff")
    cloaks = dict.fromkeys(names, cloak())
    probes = dict(zip(names, (*PROBES.values(), PROBES["ann"]), strict=True))
    evaluation = evaluate(cloaks, probes, network("rg", RedGreen()), STRANGERS)
    assert evaluation.people == names
    json.dumps(evaluation.to_json())
    with pytest.raises(ValueError, match=r"no cloak for \[7, 'zoe'\]"):
        evaluate({}, {"zoe": STRANGERS, 7: STRANGERS}, network("rg", RedGreen()))
    assert torch.equal(random_mask(cloak(), 7).delta, random_mask(cloak(), "7").delta)


@pytest.mark.parametrize(
    ("cloaks", "words"),
    [
        (cloak(), r"cloaks must be a mapping of a person's name -> Cloak, got Cloak"),
        ([cloak()], r"cloaks must be a mapping .* got list"),
        ("me.safetensors", r"cloaks must be a mapping .* got str"),
        ({"ann": "me.safetensors", "bob": cloak()}, r"cloaks\['ann'\] must be a Cloak, got str; fastcloak.load reads"),
    ],
)
def test_cloaks_that_are_not_named_cloaks_raise(cloaks: object, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        evaluate(cloaks, PROBES, network("rg", RedGreen()))


def test_photos_without_names_raise() -> None:
    net = network("rg", RedGreen())
    with pytest.raises(TypeError, match=r"probes must be a mapping of a person's name -> photos, got Tensor"):
        evaluate(CLOAKS, PROBES["ann"], net)
    with pytest.raises(TypeError, match=r"originals must be a mapping"):
        evaluate_photos([PROBES["ann"]], {}, net)
    with pytest.raises(TypeError, match=r"protected\['red'\] must be a mapping"):
        evaluate_photos(PROBES, {"red": PROBES["ann"]}, net)


@pytest.mark.parametrize("distractors", ["", {"zoe": ""}])
def test_empty_path_of_distractors_raises(distractors: object) -> None:
    net = network("rg", RedGreen())
    with pytest.raises(ValueError, match="must not be the empty path, got ''; name a folder, or pass None for none"):
        evaluate(CLOAKS, PROBES, net, distractors)


def test_not_finite_embedding_names_model_and_person() -> None:
    probes = {"ann": PROBES["ann"], "bob": photos((0, 0), (250, 0))}
    with pytest.raises(FloatingPointError, match=r"clean pictures of 'bob': broken must .* for face 1"):
        evaluate(CLOAKS, probes, network("broken", NaNWhenRed()), STRANGERS)
    with pytest.raises(FloatingPointError, match=r"distractor pictures: broken must .* for face 0"):
        evaluate(CLOAKS, PROBES, network("broken", NaNWhenRed()), photos((250, 0)))


def test_zero_embedding_raises() -> None:
    with pytest.raises(FloatingPointError, match=r"photos of 'ann': rg must .* for face 1"):
        embed(network("rg", RedGreen()), photos((1, 1), (0, 0)), owner="photos of 'ann'")


def test_two_models_of_one_name_raise() -> None:
    with pytest.raises(ValueError, match=r"a name of its own, got \['x', 'x'\]"):
        evaluate(CLOAKS, PROBES, [network("x", RedGreen()), network("x", Projection())])
    with pytest.raises(ValueError, match=r"models must be one or more"):
        evaluate(CLOAKS, PROBES, [])


@pytest.mark.parametrize("label", ["clean", "random"])
def test_control_names_are_reserved(label: str) -> None:
    with pytest.raises(ValueError, match=f"label '{label}' is the name of a control row"):
        evaluate(CLOAKS, PROBES, network("rg", RedGreen()), label=label)


def test_evaluate_photos_judges_given_pictures() -> None:
    net = network("rg", RedGreen())
    shifted = {name: CLOAKS[name].apply(faces) for name, faces in PROBES.items()}
    given = evaluate_photos(PROBES, {"red": shifted}, net, STRANGERS, learnt_on={"red": ["rg"]})
    whole = evaluate(CLOAKS, PROBES, net, STRANGERS)
    assert row_of(given, "rg", "red").per_person == row_of(whole, "rg", "cloak").per_person
    assert row_of(given, "rg", "red").white_box
    with pytest.raises(ValueError, match=r"'red' pictures of 'bob' must match the originals one to one, got 2 for 3"):
        evaluate_photos(PROBES, {"red": {**shifted, "bob": shifted["bob"][:2]}}, net)
    with pytest.raises(ValueError, match=r"'red' must hold the people of the originals, got differences \['bob'\]"):
        evaluate_photos(PROBES, {"red": {"ann": shifted["ann"]}}, net)


def test_embed_gives_unit_rows_whatever_the_batch_size() -> None:
    net, faces = network("projection", Projection()), noise(5, 1)
    whole = embed(net, faces)
    assert whole.shape == (5, 16)
    assert not whole.requires_grad
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(embed(net, faces, batch_size=2), whole)
    assert torch.equal(embed(net, faces / 255), whole)
