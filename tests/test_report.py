"""The picture of cloaked faces and the plot of rates."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from fastcloak.evaluation.figures import plot_protection, save_comparison
from fastcloak.evaluation.results import Evaluation, PersonRates, Row
from tests.judges import noise


def row(model, mask, top1, top5, *, white_box=False, change=8):
    rates = PersonRates(top1, top5, 0.5, 0.4)
    about = {"model": model, "mask": mask, "white_box": white_box, "largest_change": change, "threshold": None}
    return Row(**vars(rates), **about, per_person={"ann": rates})


EVALUATION = Evaluation(
    ("ann",),
    2,
    40,
    (
        row("sface", "clean", 0.01, 0.0, change=0),
        row("sface", "random", 0.02, 0.0),
        row("sface", "opom", 0.95, 0.9, white_box=True),
        row("sface", "ga", 1.0, 0.97, white_box=True),
        row("dlib", "clean", 0.03, 0.01, change=0),
        row("dlib", "random", 0.05, 0.02),
        row("dlib", "opom", 0.41, 0.2),
        row("dlib", "ga", 0.52, 0.31),
    ),
)


def saved(path, versions):
    save_comparison(path, versions)
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.array(image)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("masks", [1, 2])
def test_comparison_shows_originals_and_versions_with_ten_times_their_difference(tmp_path, n, masks):
    faces = noise(n, 0)
    shown, versions = [faces], {}
    for seed in range(masks):
        change = torch.randint(-20, 21, faces.shape, generator=torch.Generator().manual_seed(seed))
        versions[f"mask {seed}"] = (faces.int() + change).clamp(0, 255).byte()
        shown += [versions[f"mask {seed}"], (128 + 10 * (versions[f"mask {seed}"].int() - faces)).clamp(0, 255)]
    for before in (faces, faces / 255, faces.to(memory_format=torch.channels_last)):
        sheet = saved(tmp_path / "a.png", {"original": before, **versions})
        assert sheet.shape == (8 + len(shown) * (20 + 224 + 8), 8 + n * (224 + 8), 3)
        for i, row in enumerate(shown):
            top = 8 + i * (20 + 224 + 8)
            # A caption stands above each row.
            assert sheet[top : top + 20].min() < 100
            for j, face in enumerate(row):
                left = 8 + j * (224 + 8)
                twice = face.permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1)
                np.testing.assert_array_equal(sheet[top + 20 : top + 244, left : left + 224], twice)
        assert sheet[:8].min() == 255


def test_unknown_picture_format_leaves_no_litter(tmp_path):
    for name in ("a.nonsense", "a"):
        with pytest.raises(ValueError, match=r"path must end in a picture format such as .png, got .*a"):
            save_comparison(tmp_path / name, {"original": noise(1, 0)})
        with pytest.raises(ValueError, match=r"path must end in a picture format such as .png or .svg, got .*a"):
            plot_protection(EVALUATION, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_bad_faces_raise(tmp_path):
    for counts in ([], [0, 0], [2, 1], [2, 2, 1]):
        with pytest.raises(ValueError, match=re.escape(f"must show the same faces, one or more, got {counts} faces")):
            save_comparison(tmp_path / "a.png", {str(i): noise(count, 0) for i, count in enumerate(counts)})
    with pytest.raises(ValueError, match=r"must be in \[0, 1\] where it is float, got 0 to 255; divide by 255"):
        save_comparison(tmp_path / "a.png", {"original": noise(1, 0).float()})


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_plot_is_written_without_pyplot(tmp_path, ending):
    from matplotlib import pyplot

    plot_protection(EVALUATION, tmp_path / f"plot.{ending}")
    assert (tmp_path / f"plot.{ending}").stat().st_size > 1000
    assert pyplot.get_fignums() == []


def test_plot_names_models_masks_and_white_box(tmp_path):
    plot_protection(EVALUATION, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    # Matplotlib notes every piece of text it draws as paths in a comment.
    for word in ("sface", "dlib", "clean", "opom", "ga", "white box", "Top-1", "Top-5", "52", "31"):
        assert f"<!-- {word} -->" in text
    plot_protection(Evaluation(("ann",), 2, 40, EVALUATION.rows[4:]), tmp_path / "plot.svg")
    assert "white box" not in (tmp_path / "plot.svg").read_text()


def test_plot_of_nothing_raises(tmp_path):
    with pytest.raises(ValueError, match="evaluation must hold at least one row, got none"):
        plot_protection(Evaluation(("ann",), 2, 40, ()), tmp_path / "plot.png")
