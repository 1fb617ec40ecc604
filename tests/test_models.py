"""load_model and Surrogate: one contract for every kind of network, and nothing of the caller's is touched."""

import copy
import json
import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto
from PIL import Image
from test_onnx_import import model
from torch import nn
from torch.nn import functional as F

from fastcloak.models import load_model, prepare, unit_features
from fastcloak.models.dlib import chip_matrices, load_dlib_net
from fastcloak.models.surrogate import Ensemble, resample_matrix
from fastcloak.system import packages

# Made by dlib's own C++ (dlib-bin 20.0.1): face_recognition_model_v1(dat).compute_face_descriptor(chip) on the 150x150
# uint8 chips of `chips()`, rounded to 7 digits.
DLIB_EMBEDDINGS = json.loads((Path(__file__).parent / "data" / "dlib_embeddings.json").read_text())


def chips():
    """The three chips, in whole-number arithmetic only: a synthetic one, and two ORL faces by nearest neighbour."""
    y, x = np.mgrid[0:150, 0:150]
    made = {"synthetic": np.stack([(x * 3 + y) % 256, (x * x // 50 + 2 * y) % 256, (x + y * y // 40) % 256], -1)}
    for person, photo in ((1, 1), (27, 4)):
        with Image.open(packages.orl_folder() / f"s{person}" / f"{photo}.pgm") as picture:
            grey = np.asarray(picture.convert("L"))
        rows, columns = np.arange(150) * 112 // 150, np.arange(150) * 92 // 150
        made[f"orl_s{person}_{photo}"] = np.repeat(grey[rows][:, columns][..., None], 3, -1)
    return made


def tiny(size=112):
    """A smooth network of 5 numbers that takes only pictures of this size."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, 7), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * ((size - 5) // 7 + 1) ** 2, 5)
    )


def random_faces(n=3, seed=0):
    return torch.rand(n, 3, 112, 112, generator=torch.Generator().manual_seed(seed))


def mean_colour(pictures):
    return pictures.mean((2, 3))


@pytest.mark.parametrize("name", ["synthetic", "orl_s1_1", "orl_s27_4"])
def test_dlib_agrees_with_dlibs_own_embeddings(name):
    net = load_dlib_net(packages.dlib_file())
    chip = torch.from_numpy(chips()[name].astype(np.float32)).permute(2, 0, 1)[None]
    mean = torch.tensor([122.782, 117.001, 104.298]).reshape(1, 3, 1, 1)
    assert (net((chip - mean) / 256)[0] - torch.tensor(DLIB_EMBEDDINGS[name])).abs().max() <= 1e-4


def test_the_dlib_chip_is_the_bilinear_sample_it_says():
    faces = random_faces()
    step = torch.arange(150, dtype=torch.float64)
    scale = 52.55 / 35.24
    x, y = (step - 74.005) / scale + 55.913, (step - 47.13) / scale + 51.599
    grid = torch.stack([x[None].expand(150, 150), y[:, None].expand(150, 150)], -1)
    grid = ((grid + 0.5) / 112 * 2 - 1).expand(3, -1, -1, -1)
    expected = F.grid_sample(faces.double(), grid, padding_mode="border", align_corners=False)
    rows, columns = chip_matrices()
    assert (rows @ faces @ columns.T - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(("name", "size", "length"), [("sface", 112, 0.0), ("dlib", 150, 1.3)])
def test_the_real_surrogates_keep_the_contract(name, size, length):
    surrogate = load_model(name)
    faces = random_faces(1).requires_grad_()
    embedding = surrogate(faces)
    assert (surrogate.name, surrogate.input_size, surrogate.embedding_size) == (name, size, 128)
    assert (embedding.shape, embedding.dtype) == ((1, 128), torch.float32)
    assert torch.autograd.grad(embedding.sum(), faces)[0].isfinite().all()
    assert not surrogate.training
    assert not any(parameter.requires_grad for parameter in surrogate.parameters())
    mean = torch.zeros(128) if surrogate.mean_embedding is None else surrogate.mean_embedding
    assert torch.equal(embedding, surrogate.net(surrogate.net_input(surrogate.normalise(faces))) - mean)
    assert abs(mean.norm() - length) < 0.1


@pytest.mark.parametrize(("share", "words"), [(0, "expected a layer con_, got the end"), (0.5, "the end of the file")])
def test_a_file_that_is_no_dlib_network_is_refused(tmp_path, share, words):
    whole = packages.dlib_file().read_bytes()
    (tmp_path / "net.dat").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"net\.dat: .*{words}"):
        load_dlib_net(tmp_path / "net.dat")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scale": 255 / 128, "shift": -127.5 / 128}, [0.0, 0.0, 0.0]),
        ({"scale": (1.0, 2.0, 4.0), "shift": (0.1, 0.2, 0.3), "bgr": True}, [2.3, 1.2, 0.6]),
        ({"scale": torch.tensor([1.0, 2.0, 4.0]), "shift": np.zeros(3)}, [0.5, 1.0, 2.0]),
        ({"mean_embedding": [0.1, 0.2, 0.3]}, [0.4, 0.3, 0.2]),
    ],
)
def test_options_say_what_the_network_gets_in_rgb_order(options, expected):
    embeddings = load_model(mean_colour, **options)(torch.full((1, 3, 112, 112), 0.5))
    assert torch.allclose(embeddings, torch.tensor([expected]), atol=1e-6)


@pytest.mark.parametrize("size", [7, 96, 224])
def test_another_input_size_is_a_bilinear_resize(size):
    faces = random_faces()
    surrogate = load_model(lambda pictures: pictures.flatten(1), input_size=size)
    expected = F.interpolate(faces.double(), (size, size), mode="bilinear", antialias=size < 112)
    assert surrogate.embedding_size == 3 * size * size
    assert (surrogate(faces).reshape(3, 3, size, size) - expected).abs().max() <= 1e-5
    assert (resample_matrix(size).sum(1) - 1).abs().max() <= 1e-6


@pytest.mark.parametrize("options", [{}, {"input_size": 160}, {"input_size": 64, "bgr": True}])
def test_the_gradient_agrees_with_finite_differences_in_float64(options):
    surrogate = load_model(
        tiny(options.get("input_size", 112)), scale=(2.0, 3.0, 1.5), shift=-1.0, mean_embedding=[0.1] * 5, **options
    ).double()
    faces = random_faces(2).double().requires_grad_()
    (gradient,) = torch.autograd.grad(surrogate(faces).square().sum(), faces)
    direction = torch.randn(faces.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-5
    with torch.no_grad():
        up, down = (surrogate(faces + sign * step * direction).square().sum() for sign in (1, -1))
    expected = (up - down) / (2 * step)
    assert abs((gradient * direction).sum() - expected) <= 1e-6 * abs(expected)


def test_forward_refuses_other_shapes_and_whole_numbers():
    surrogate = load_model(mean_colour)
    for bad in (torch.zeros(3, 112, 112), torch.zeros(1, 112, 112, 3), torch.zeros(1, 3, 112, 112, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"faces must be \[n, 3, 112, 112\] float in \[0, 1\], got .*divide"):
            surrogate(bad)


def state(module):
    return (
        {name: tensor.clone() for name, tensor in module.state_dict().items()},
        [parameter.requires_grad for parameter in module.parameters()],
        [part.training for part in module.modules()],
        [parameter.grad for parameter in module.parameters()],
    )


@pytest.mark.promise("P5")
def test_the_callers_module_is_untouched():
    module = tiny().train()
    module[0].weight.requires_grad_(False)
    before = state(module)
    faces = random_faces().requires_grad_()
    surrogate = load_model(module)
    surrogate(faces).sum().backward()
    after = state(module)
    assert before[1:] == after[1:]
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    surrogate.net[0].weight.zero_()
    assert torch.equal(module[0].weight, before[0]["0.weight"])


def test_a_callable_is_used_unchanged():
    module = tiny().train()
    module[1].eval()
    surrogate = load_model(lambda pictures: module(pictures))
    assert module.training
    assert not module[1].training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not list(surrogate.parameters())


@pytest.mark.promise("P5")
def test_the_random_state_is_untouched_also_by_networks_that_draw_from_it():
    module = tiny()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_model("dlib")
    load_model("sface")
    load_model(module)
    assert load_model(lambda pictures: F.dropout(pictures.mean((2, 3)))).embedding_size == 3
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def meta_counts_as_here(monkeypatch):
    """A second device on every machine."""
    monkeypatch.setattr("fastcloak.models.load.resolve_device", torch.device)


@pytest.mark.usefixtures("meta_counts_as_here")
def test_a_surrogate_is_returned_unchanged_and_moved_as_a_copy():
    surrogate = load_model(tiny())
    assert load_model(surrogate) is surrogate
    assert load_model(surrogate, "cpu") is surrogate
    assert load_model(surrogate, "meta").device.type == "meta"
    assert load_model((surrogate, load_model(mean_colour)), "meta").device.type == "meta"
    assert surrogate.device.type == "cpu"
    assert next(surrogate.parameters()).device.type == "cpu"


def test_a_copy_shares_no_tensor_but_shares_a_callable():
    surrogate = load_model(tiny())
    assert surrogate.copy().net[0].weight.data_ptr() != surrogate.net[0].weight.data_ptr()
    function = load_model(mean_colour)
    assert function.copy().net is function.net
    assert copy.deepcopy(surrogate)(random_faces()).equal(surrogate(random_faces()))


def test_names_and_sizes():
    assert load_model(nn.AdaptiveAvgPool2d(1))(random_faces()).shape == (3, 3)
    assert load_model(mean_colour).name == "mean_colour"
    assert load_model([tiny()], name="mine").members[0].name == "mine"
    surrogate = load_model(tiny())
    assert load_model(surrogate, name="mine").name == "mine"
    assert surrogate.name == "Sequential"
    assert "'Sequential', input_size=112, embedding_size=5" in repr(surrogate)


def cosine(a, b):
    return F.cosine_similarity(a, b, dim=1)


@pytest.mark.parametrize("nested", [False, True])
def test_the_cosine_of_an_ensemble_is_the_mean_of_its_members(nested):
    members = [load_model(tiny()), load_model(mean_colour, scale=3.0), load_model(tiny(96), input_size=96)]
    if nested:
        members = [load_model(members), members[1]]
    ensemble = load_model(members)
    a, b = random_faces(4, 1), random_faces(4, 2)
    expected = torch.stack([cosine(member(a), member(b)) for member in members]).mean(0)
    assert (cosine(ensemble(a), ensemble(b)) - expected).abs().max() <= 1e-6
    assert (ensemble(a).norm(dim=1) - 1).abs().max() <= 1e-6
    assert ensemble.embedding_size == sum(member.embedding_size for member in members)
    assert ensemble.input_size == 112
    assert ensemble.name == "Sequential+mean_colour+Sequential" + "+mean_colour" * nested
    assert [member.name for member in ensemble.members] == [member.name for member in members]


def onnx_file(path, head="x", shape=("n", 3, 112, 112), **options):
    """The mean colour of what `head` makes of the picture x."""
    text = f"{head}; y = GlobalAveragePool(h)" if head != "x" else "y = GlobalAveragePool(x)"
    path.write_bytes(model(text, shape=shape, **options).SerializeToString())
    return path


@pytest.mark.parametrize("kind", [str, Path])
def test_an_onnx_file_by_its_path(tmp_path, kind):
    surrogate = load_model(kind(onnx_file(tmp_path / "Colour.onnx", shape=("n", 3, 64, 64))), scale=2.0, shift=-1.0)
    assert (surrogate.name, surrogate.input_size, surrogate.embedding_size) == ("Colour", 64, 3)
    assert torch.allclose(surrogate(torch.full((2, 3, 112, 112), 0.75)), torch.full((2, 3), 0.5), atol=1e-6)


def sub_div(a, b):
    return {"head": "s = Sub(x, a); h = Div(s, b)", "a": np.float32(a), "b": np.float32(b)}


NORMALISATIONS = {
    "none": ({}, {}, ["a.onnx: gets RGB in [0, 1]", "scale=255 / 128, shift=-127.5 / 128"]),
    "idle": (sub_div(0, 1), {}, ["gets RGB in [0, 1]"]),
    "of_0_to_255": (sub_div(127.5, 128), {}, ["[-0.996, -0.988]", "scale=255"]),
    "of_0_to_255_said": (sub_div(127.5, 128), {"scale": 255.0}, []),
    "of_0_to_1": (sub_div(0.5, 0.5), {}, []),
}


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_an_onnx_file_that_seems_to_expect_another_range_says_so(tmp_path, caplog, name):
    made, options, words = NORMALISATIONS[name]
    with caplog.at_level(logging.WARNING, "fastcloak"):
        load_model(onnx_file(tmp_path / "a.onnx", **made), **options)
    assert len(caplog.records) == bool(words)
    assert all(word in caplog.text for word in words)


@pytest.mark.parametrize("shape", [("n", 3, 112, 112), (1, 112, 112, 3), ("n", "h", "w", 3)])
def test_an_onnx_file_that_takes_uint8_gets_0_to_255(tmp_path, caplog, shape):
    order = [0, 3, 1, 2] if shape[-1] == 3 else [0, 1, 2, 3]
    head = f"c = Cast<to=1>(x); d = Div(c, b); h = Transpose<perm={order}>(d)"
    path = onnx_file(tmp_path / "a.onnx", head, shape, kind=TensorProto.UINT8, b=np.float32(51))
    faces = torch.rand(2, 3, 112, 112, requires_grad=True)
    with caplog.at_level(logging.WARNING, "fastcloak"):
        embeddings = load_model(path)(faces)
    assert not caplog.text
    assert torch.allclose(embeddings, 5 * faces.mean((2, 3)), atol=1e-4)
    (gradient,) = torch.autograd.grad(embeddings.sum(), faces)
    assert torch.allclose(gradient, torch.full_like(gradient, 5 / 112**2))
    assert torch.allclose(load_model(path, shift=51.0)(faces), embeddings + 1, atol=1e-4)
    assert torch.allclose(load_model(path, scale=51.0)(faces), embeddings / 5, atol=1e-5)


# fmt: off
UNUSABLE = {
    "unknown_name": ("arcface", ValueError,
        r"unknown model 'arcface'; expected 'sface', 'dlib', the path of an \.onnx file"),
    "number": (3, TypeError, r"what must be 'sface', .*, got int"),
    "class": (nn.Flatten, TypeError, r"got the class Flatten; pass an instance"),
    "missing_file": (Path("none.onnx"), FileNotFoundError, r"none\.onnx"),
    "empty_list": ([], ValueError, r"at least one member, got an empty list"),
    "tuple": (lambda x: (x, None), ValueError, r"must return a tensor \[n, D\], got tuple; .*net\(x\)\[0\]"),
    "pictures": (nn.ReLU(), ValueError, r"must return \[1, D\] for one picture, got \[1, 3, 112, 112\]"),
    "number_for_all": (torch.mean, ValueError, r"must return \[1, D\] for one picture, got \[\]"),
    "complex": (lambda x: torch.fft.fft(x.mean((2, 3))), ValueError, r"must return real numbers, got torch\.complex64"),
    "no_numbers": (nn.Linear(1, 1, device="meta"), ValueError, r"device must be .*the meta device holds no numbers"),
}
# fmt: on


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_no_network_is_refused(name):
    what, kind, words = UNUSABLE[name]
    with pytest.raises(kind, match=words):
        load_model(what)


@pytest.mark.parametrize(
    "option", [{"scale": 2.0}, {"shift": (0, 0, 1)}, {"bgr": True}, {"input_size": 112}, {"mean_embedding": [1.0] * 5}]
)
@pytest.mark.parametrize(
    ("what", "named"), [("sface", "'sface'"), (["sface"], "an ensemble"), (load_model(mean_colour), "a Surrogate")]
)
def test_options_where_the_network_has_its_own_are_refused(what, named, option):
    with pytest.raises(ValueError, match=rf"{named} has its own {next(iter(option))}; leave that out"):
        load_model(what, **option)


def test_a_network_of_another_size_says_to_pass_it():
    with pytest.raises(ValueError, match=r"fails on a picture \[1, 3, 112, 112\] .*say so with input_size="):
        load_model(tiny(160))
    assert load_model(tiny(160), input_size=160).embedding_size == 5


MIXES = {
    "one_for_all": lambda x: x.mean((2, 3)).mean(0, keepdim=True),
    "one_long_row": lambda x: x.mean((2, 3)).reshape(1, -1),
    "the_first": lambda x: x[:1].mean((2, 3)),
    "mean_left_out": lambda x: x.mean((2, 3)) - x.mean((0, 2, 3)),
    "half_of_the_mean": lambda x: x.mean((2, 3)) + 0.5 * x.mean((0, 2, 3)),
    "statistics_of_the_batch": lambda x: F.batch_norm(x, None, None, training=True).abs().mean((2, 3)),
    "turned_around": lambda x: x.mean((2, 3)).flip(0),
    "another_type": lambda x: x.mean((2, 3)) if len(x) == 1 else None,
}


@pytest.mark.parametrize("name", MIXES)
def test_a_network_that_mixes_the_pictures_of_a_batch_is_refused(name):
    words = r"mine must give every picture its own embedding, whatever else is in the batch, got .*\[n, D\]"
    with pytest.raises(ValueError, match=words):
        load_model(MIXES[name], name="mine")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_not_taken_for_mixing(dtype):
    module = tiny().eval().to(dtype)
    assert load_model(module).dtype == dtype
    assert load_model(lambda pictures: module(pictures.to(dtype)).float()).embedding_size == 5


def test_a_network_of_one_picture_at_a_time_is_loaded():
    module = tiny().eval()
    surrogate = load_model(lambda pictures: module(pictures.reshape(1, 3, 112, 112)))
    assert torch.equal(surrogate(random_faces(1)), module(random_faces(1)))
    assert torch.allclose(unit_features(surrogate, random_faces(3), 1).norm(dim=1), torch.ones(3))


def test_a_network_that_mixes_larger_batches_only_is_refused_by_unit_features():
    surrogate = load_model(lambda x: x.mean((2, 3)) if len(x) < 3 else x.mean((2, 3))[:1], name="mine")
    with pytest.raises(ValueError, match=r"mine must give every picture its own embedding, .* got 2 for 4 faces"):
        unit_features(surrogate, random_faces(4), 3)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "8", None])
def test_batch_size_must_be_a_whole_number(bad):
    with pytest.raises(ValueError, match=r"batch_size must be a whole number, 1 or more, got"):
        unit_features(load_model(mean_colour), random_faces(), bad)


KINDS = {
    "scripted": torch.jit.script,
    "traced": lambda module: torch.jit.trace(module, random_faces(1)),
    "frozen": lambda module: torch.jit.freeze(torch.jit.script(module)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_scripted_module_is_loaded_and_left_unchanged(kind):
    module = tiny().eval()
    expected = module(random_faces())
    compiled = KINDS[kind](module)
    wanted = [parameter.requires_grad for parameter in compiled.parameters()]
    surrogate = load_model(compiled)
    assert torch.allclose(surrogate(random_faces()), expected, atol=1e-5)
    assert [parameter.requires_grad for parameter in compiled.parameters()] == wanted
    assert not any(parameter.requires_grad for parameter in surrogate.parameters())
    prepared = prepare(surrogate)
    assert prepared.notes[0].startswith("not folded")
    assert torch.allclose(prepared(random_faces()), expected, atol=1e-5)
    faces = random_faces(1).requires_grad_()
    assert torch.autograd.grad(prepared(faces).sum(), faces)[0].abs().sum() > 0


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_module_says_to_run_it_once():
    module = nn.Sequential(nn.LazyConv2d(4, 9, 9), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(ValueError, match=r"Sequential must have its weights, .*run it once on a picture first"):
        load_model(module)
    module(random_faces(1))
    assert load_model(module).embedding_size == 5


NUMBERS = [(1.0, 2.0), float("nan"), (1.0, 2.0, float("inf")), "2", "rgb", (1, 2, "3"), None, {}]
BAD_OPTIONS = {
    "scale": (NUMBERS, "one finite number or three in RGB order"),
    "shift": (NUMBERS, "one finite number or three in RGB order"),
    "bgr": (["no", 1, None], "True or False"),
    "mean_embedding": ([[0.0] * 4, [float("nan")] * 5, "mean", {}], "5 finite numbers"),
    "input_size": ([0, -3, 4096, 1.5, True], r"a whole number, 1 or more, at most 1024"),
}


@pytest.mark.parametrize(
    ("option", "bad"), [(option, bad) for option, (bads, _) in BAD_OPTIONS.items() for bad in bads]
)
def test_options_must_be_sensible(option, bad):
    with pytest.raises(ValueError, match=f"{option} must be {BAD_OPTIONS[option][1]}"):
        load_model(tiny(), **{option: bad})


@pytest.mark.parametrize("what", [mean_colour, tiny(), "dlib", [mean_colour]])
def test_a_device_is_auto_or_one_that_is_here(what):
    assert load_model(what, "auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    for bad in ("tpu9", "meta", 3.5):
        with pytest.raises(ValueError, match=r"device must be 'auto' or a device that this machine has, got"):
            load_model(what, bad)


def test_a_module_that_cannot_be_copied_says_so():
    for unique, words in ((tiny()[0].weight * 2, "graph leaves"), (threading.Lock(), "lock")):
        module = tiny()
        module.cache = unique
        with pytest.raises(ValueError, match=rf"Sequential cannot be copied .*{words}.*pass a function that calls it"):
            load_model(module)


def test_members_on_different_devices_are_refused():
    here = load_model(tiny())
    with pytest.raises(ValueError, match=r"members must be one or more on one device, got 2 on \['cpu', 'meta'\]"):
        Ensemble([here, here.copy().to("meta")])
