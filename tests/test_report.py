from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcloak.evaluation.figures import comparison, plot_protection, save_comparison
from fastcloak.evaluation.results import Evaluation, PersonRates, Row


def grey(level: int, n: int = 1, height: int = 7, width: int = 112) -> torch.Tensor:
    return torch.full((n, 3, height, width), level, dtype=torch.uint8)


def tile(sheet: Image.Image, row: int, column: int, height: int, width: int) -> np.ndarray:
    # 8 of margin, 20 of caption, photos drawn twice as large
    top, left = 8 + row * (20 + 2 * height + 8) + 20, 8 + column * (2 * width + 8)
    return np.asarray(sheet)[top : top + 2 * height, left : left + 2 * width]


def rates(top1: float, top5: float) -> PersonRates:
    return PersonRates(top1, top5, 0.5, 0.4)


def row(model: str, mask: str, top1: float, top5: float, *, white_box: bool = False, change: int = 8) -> Row:
    return Row(model, mask, white_box, change, *rates(top1, top5), {"ann": rates(top1, top5)})


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


@pytest.mark.parametrize(("n", "height", "width"), [(1, 7, 112), (3, 112, 112), (10, 1, 3)])
def test_comparison_has_the_stated_size(n: int, height: int, width: int) -> None:
    sheet = comparison(grey(90, n, height, width), grey(91, n, height, width))
    assert sheet.mode == "RGB"
    assert sheet.size == (8 + n * (2 * width + 8), 8 + 3 * (20 + 2 * height + 8))


@pytest.mark.parametrize(
    ("change", "gain", "level"), [(0, 10, 128), (8, 10, 208), (-8, 10, 48), (3, 5, 143), (20, 10, 255)]
)
def test_known_change_gives_known_grey(change: int, gain: int, level: int) -> None:
    sheet = comparison(grey(100), grey(100 + change), gain=gain)
    assert [np.unique(tile(sheet, i, 0, 7, 112)).tolist() for i in range(3)] == [[100], [100 + change], [level]]


def test_photos_keep_their_pixels_colours_and_order() -> None:
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(0, 256, (3, 3, 5, 9), dtype=torch.uint8, generator=generator)
    for before in (photos, photos / 255, photos.to(memory_format=torch.channels_last)):
        sheet = comparison(before, photos.flip(3))
        for i, photo in enumerate(photos):
            twice = photo.permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1)
            np.testing.assert_array_equal(tile(sheet, 0, i, 5, 9), twice)
            np.testing.assert_array_equal(tile(sheet, 1, i, 5, 9), twice[:, ::-1])


def test_captions_are_drawn_between_the_rows() -> None:
    pixels = np.asarray(comparison(grey(100), grey(101)))
    for i in range(3):
        top = 8 + i * (20 + 14 + 8)
        assert pixels[top : top + 20].min() < 100
    assert pixels[:8].min() == 255


def test_saved_comparison_is_the_comparison(tmp_path: Path) -> None:
    save_comparison(tmp_path / "a.png", grey(100), grey(104), gain=20)
    with Image.open(tmp_path / "a.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(comparison(grey(100), grey(104), gain=20)))


def test_unknown_picture_format_leaves_no_litter(tmp_path: Path) -> None:
    for name in ("a.nonsense", "a"):
        with pytest.raises(ValueError, match=r"path must end in a picture format such as .png, got .*a"):
            save_comparison(tmp_path / name, grey(1), grey(1))
        with pytest.raises(ValueError, match=r"path must end in a picture format such as .png or .svg, got .*a"):
            plot_protection(EVALUATION, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_bad_photos_raise() -> None:
    with pytest.raises(ValueError, match=r"originals must be float in \[0, 1\], got 100 to 100; divide by 255"):
        comparison(grey(100).float(), grey(100))
    with pytest.raises(ValueError, match=r"cloaked must be float in \[0, 1\], got nan"):
        comparison(grey(100), torch.full((1, 3, 7, 112), torch.nan))
    with pytest.raises(ValueError, match=r"originals must be uint8 or float in \[0, 1\], got torch.int64"):
        comparison(grey(100).long(), grey(100))
    with pytest.raises(
        ValueError, match=r"originals must be \[N, 3, H, W\] with at least one photo, got \[3, 7, 112\]"
    ):
        comparison(grey(100)[0], grey(100))
    with pytest.raises(ValueError, match=r"at least one photo, got \[0, 3, 7, 112\]"):
        comparison(grey(100, 0), grey(100, 0))
    with pytest.raises(ValueError, match=r"cloaked must have the shape of originals, \[2, 3, 7, 112\], got \[1, 3"):
        comparison(grey(100, 2), grey(100))


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_plot_is_written(tmp_path: Path, ending: str) -> None:
    plot_protection(EVALUATION, tmp_path / f"plot.{ending}")
    assert (tmp_path / f"plot.{ending}").stat().st_size > 1000


def test_plot_names_models_masks_and_white_box(tmp_path: Path) -> None:
    plot_protection(EVALUATION, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    # Matplotlib notes every piece of text it draws as paths in a comment.
    for word in ("sface", "dlib", "clean", "opom", "ga", "white box", "Top-1", "Top-5", "52", "31"):
        assert f"<!-- {word} -->" in text
    plot_protection(Evaluation(("ann",), 2, 40, EVALUATION.rows[4:]), tmp_path / "plot.svg")
    assert "white box" not in (tmp_path / "plot.svg").read_text()


def test_plot_keeps_pyplot_out_of_it(tmp_path: Path) -> None:
    from matplotlib import pyplot

    plot_protection(EVALUATION, tmp_path / "plot.png")
    assert pyplot.get_fignums() == []


def test_plot_of_nothing_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="evaluation must hold at least one row, got none"):
        plot_protection(Evaluation(("ann",), 2, 40, ()), tmp_path / "plot.png")
