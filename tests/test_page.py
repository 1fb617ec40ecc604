"""The report of a check, opened in a real browser, at the widths of a phone and of a desk."""

import io
import os
import re
import shutil
from dataclasses import replace
from importlib import resources
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from fastcloak import Cloak, check_photos, load_model, write_page
from fastcloak.evaluation.page import FIRST_LINE, page
from fastcloak.evaluation.text import as_text
from fastcloak.evaluation.versions import photo_pictures
from tests.conftest import TinyNet, smooth_faces

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Nothing that a browser does on its own account, such as updates, and no sandbox, which needs rights containers lack.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = (
    "<script>document.title='owned'</script>.png",
    "\"><img src=x onerror=alert(1)>'&amp;.png",
    os.fsdecode(b"\xff\xfe\x1b[31m.png"),
    "a\u202egnp.jpg",
)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium (Debian's package; .ci/run installs it)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def checked():
    """Four photos on three networks, two of them with a threshold and one with the cloak fitted on it."""
    faces = (smooth_faces(4) * 255).byte()
    strength = torch.tensor([0, 2, 5, 8]).view(4, 1, 1, 1)
    noise = torch.randint(0, 2, (1, 3, 112, 112), generator=torch.Generator().manual_seed(0)) * 2 - 1
    posted = (faces + strength * noise).clamp(0, 255).byte()
    networks = [load_model(TinyNet(), name=name) for name in ("sface", "dlib", "network <b>")]
    cloak = Cloak(torch.zeros(3, 112, 112), 0.1, {"models": ["sface", "<i>"]})
    return check_photos(faces, posted, networks, (smooth_faces(5, 1) * 255).byte(), cloak=cloak, keep_pictures=True)


@pytest.fixture(scope="module")
def report(checked, tmp_path_factory):
    """The same with hostile names, as a file."""
    photos = tuple(replace(photo, name=name) for photo, name in zip(checked.photos, HOSTILE, strict=True))
    path = tmp_path_factory.mktemp("page") / "report <b> #1.html"
    failed = {"<script>alert(2)</script>": "cannot be read </script><script>alert(3)</script>"}
    write_page(replace(checked, photos=photos, failed=failed), path)
    return path


@pytest.fixture(params=[390, 1280])
def width(request):
    """Of a phone and of a desk."""
    return request.param


@pytest.fixture
def opened(browser, report, width):
    """The page, what its console logged, and what it asked for."""
    tab = browser.new_page(viewport={"width": width, "height": 844}, has_touch=width < 600)
    logged, asked = [], []
    tab.on("console", lambda message: logged.append(message.text))
    tab.on("pageerror", lambda error: logged.append(str(error)))
    tab.on("dialog", lambda dialog: (logged.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda sent: asked.append(sent.url))
    tab.goto(report.as_uri())
    yield tab, logged, asked
    tab.close()


def cut(tab):
    """Share of the first close-up that shows the original, from the clip that the browser computed."""
    clip = tab.locator(".compare .top").nth(1).evaluate("image => getComputedStyle(image).clipPath")
    return 100 - float(re.fullmatch(r"inset\(0px ([\d.]+)%? 0px 0px\)", clip)[1])


@pytest.mark.promise("P16")
def test_the_page_asks_for_nothing_and_shows_hostile_names_as_text(opened, report):
    tab, logged, asked = opened
    folded = tab.locator("details:not([open]) > summary")
    while folded.count():
        folded.first.click()
    tab.wait_for_timeout(100)
    assert logged == []
    assert [url for url in asked if urlsplit(url).scheme != "data"] == [report.as_uri()]
    assert "fastcloak check" in tab.title()
    assert tab.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)") == [112] * 7 * 4
    assert (
        tab.locator(".card .name").all_inner_texts()
        == tab.locator("summary .name").all_inner_texts()
        == [
            *HOSTILE[:2],
            "\\udcff\\udcfe\\x1b[31m.png",
            "a\\u202egnp.jpg",
        ]
    )
    assert tab.locator("script").count() == 1
    assert tab.locator("img[src=x], i, b").count() == 0
    # A script that slips in does not run, nor does anything leave the page.
    tab.evaluate(
        "() => { const bad = document.createElement('script'); bad.textContent = 'document.title = \"owned\"';"
        "document.body.append(bad); }"
    )
    assert tab.title() != "owned"
    assert "Content Security Policy" in " ".join(logged)
    sent = tab.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', error => String(error))")
    assert "TypeError" in sent
    text = report.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<iframe|srcset", re.sub(r"base64,[^\"]+", "", text))
    assert "default-src 'none'" in text


def test_nothing_is_wider_than_the_screen(opened, width):
    tab, _, _ = opened
    for _ in range(2):
        scroll, inner = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert scroll <= inner == width
        # Tables scroll inside their box, and everything else fits.
        wide = tab.evaluate(
            "[...document.querySelectorAll('main *')].filter(element => !element.closest('.scroll') && "
            "element.getBoundingClientRect().right > innerWidth + 1).map(element => element.outerHTML.slice(0, 80))"
        )
        assert wide == []
        tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")


def test_the_slider_moves_by_key_by_mouse_and_by_finger(opened, width):
    tab, _, _ = opened
    slider = tab.locator(".compare input").nth(1)
    assert cut(tab) == 50
    slider.focus()
    for _ in range(10):
        tab.keyboard.press("ArrowRight")
    assert cut(tab) == 60
    tab.keyboard.press("Home")
    assert cut(tab) == 0
    assert slider.get_attribute("aria-valuetext") == "0 % original"
    outline = tab.locator(".compare").nth(1).evaluate("element => getComputedStyle(element).outlineStyle")
    assert outline == "solid"
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + 0.1 * box["width"], middle)
    tab.mouse.down()
    assert cut(tab) == pytest.approx(10, abs=1.5)
    tab.mouse.move(box["x"] + 0.8 * box["width"], middle, steps=5)
    assert cut(tab) == pytest.approx(80, abs=1.5)
    tab.mouse.up()
    tab.mouse.move(box["x"], middle)
    assert cut(tab) == pytest.approx(80, abs=1.5)
    press = tab.touchscreen.tap if width < 600 else tab.mouse.click
    press(box["x"] + 0.25 * box["width"], middle)
    assert cut(tab) == pytest.approx(25, abs=1.5)


def test_the_slider_shows_the_original_on_the_left_and_the_protected_photo_on_the_right(browser, tmp_path):
    colours = torch.zeros(2, 3, 112, 112, dtype=torch.uint8)
    colours[0, 0], colours[1, 2] = 255, 255
    net = load_model(TinyNet(), name="net")
    write_page(check_photos(colours[:1], colours[1:], net, keep_pictures=True), tmp_path / "r.html")
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    tab.goto((tmp_path / "r.html").as_uri())
    for picture in tab.locator(".compare, .album a").all():
        with Image.open(io.BytesIO(picture.screenshot())) as shot:
            at = [(int(x * shot.width), shot.height // 2) for x in (0.2, 0.8)]
            left, right = (shot.convert("RGB").getpixel(point) for point in at)
        assert (left, right) == ((255, 0, 0), (0, 0, 255))
    tab.close()


def test_what_matters_is_first_and_the_rest_is_folded(opened):
    tab, _, _ = opened
    # The summary is on the screen before anyone scrolls.
    assert tab.locator(".headline").bounding_box()["y"] < 200
    (listed,) = tab.locator("details:has-text('1 file not checked')").all()
    assert listed.locator("li").is_visible()
    assert "cannot be read" in listed.inner_text()
    order = [".headline", ".album", ".strip", "main > p >> text=Photo by photo", "table"]
    tops = [tab.locator(part).first.bounding_box()["y"] for part in order]
    assert tops == sorted(tops)
    assert tops[-2] < listed.bounding_box()["y"] < tops[-1]
    photos = tab.locator("details:has(.facts)")
    assert photos.evaluate_all("all => all.map(one => one.open)") == [True, False, False, False]
    second = photos.nth(1)
    assert not second.locator("table").is_visible()
    second.locator("summary").click()
    assert second.locator("table").is_visible()


def test_a_photo_chosen_in_the_album_is_shown_large(opened, width):
    tab, _, asked = opened
    strip = tab.locator(".strip").bounding_box()
    for number in (3, 1):
        tab.locator(".album a").nth(number).focus()
        tab.keyboard.press("Enter")
        tab.wait_for_timeout(100)
        card = tab.locator(".card").nth(number).bounding_box()
        assert strip["x"] - 1 <= card["x"] <= strip["x"] + 0.1 * width
    assert len(asked) == 1 + len([url for url in asked if url.startswith("data:")])


def test_photos_are_shown_in_three_sizes(opened):
    tab, _, _ = opened
    card = tab.locator(".card").first
    reading, close_up = (card.locator(".compare").nth(i).bounding_box() for i in (0, 1))
    thumbnail = tab.locator(".album img").first.bounding_box()
    assert thumbnail["width"] == reading["width"] == 112
    # As wide as the screen of a phone, and three times the photo's pixels where there is room.
    assert 2.5 * 112 < close_up["width"] <= 3 * 112
    assert "Up to 3.0 times the photo's own pixels." in card.inner_text()


def test_the_page_can_be_read_aloud(opened):
    tab, _, _ = opened
    assert tab.locator("html").get_attribute("lang") == "en"
    assert tab.locator("h1").count() == 1
    assert all(tab.locator("img").evaluate_all("all => all.map(image => image.alt.length > 10)"))
    assert all(tab.locator("th").evaluate_all("all => all.map(cell => cell.scope !== '')"))
    assert all(tab.locator("input").evaluate_all("all => all.map(input => input.ariaLabel.length > 10)"))
    labels = tab.locator(".scroll").evaluate_all("all => all.map(box => [box.tabIndex, box.ariaLabel.length > 10])")
    assert all(label == [0, True] for label in labels)


def test_colours_have_contrast():
    style = resources.files("fastcloak.evaluation").joinpath("page.css").read_text(encoding="utf-8")
    schemes = re.findall(r":root {([^}]*)}", style)
    assert len(schemes) == 2
    for scheme in schemes:
        light = {name: luminance(colour) for name, colour in re.findall(r"--(\w+): (#\w{6});", scheme)}
        for ground in ("paper", "card"):
            for ink in ("ink", "dim", "good", "bad", "link"):
                bright, dark = sorted((light[ink], light[ground]), reverse=True)
                # WCAG 2.1, 1.4.3 (AA).
                assert (bright + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_and_page_show_the_same_sentences_and_tables(browser, checked, tmp_path):
    write_page(checked, tmp_path / "r.html")
    tab = browser.new_page()
    tab.goto((tmp_path / "r.html").as_uri())
    text, shown = checked.table(), tab.locator("main").text_content()
    for line in (*checked.summary(), *checked.limits()):
        assert line in text
        assert line in shown
    tables = (checked.network_table(), checked.post_processing_table(), checked.photo_table(), checked.number_table())
    for table in tables:
        drawn = tab.locator(f"[aria-label='{table.title}'] tr").evaluate_all(
            "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        )
        assert drawn == [list(row) for row in (table.header, *table.rows)]
        assert [re.split(r"  +", line) for line in as_text(table)[1 : len(drawn) + 1]] == drawn
        assert all(note in shown for note in table.notes)
    assert "\n".join(as_text(checked.network_table())) in text
    assert checked.network_table().rows[0][0] == "sface*"
    assert all(checked.verdict(i) in shown for i in range(4))
    assert f"{checked.models[0].as_saved.after.nearest[3]:.3f} (" in shown
    tab.close()


def test_pictures_show_the_pixels_as_they_are_and_the_difference_ten_times(checked):
    shown = checked.photos[3].pictures
    before, after, difference = (
        np.array(Image.open(io.BytesIO(png))).astype(int)
        for png in (shown.face.original, shown.face.protected, shown.difference)
    )
    faces = (smooth_faces(4) * 255).byte()
    assert (before == faces[3].permute(1, 2, 0).numpy()).all()
    assert (difference == (128 + 10 * (after - before)).clip(0, 255)).all()
    assert 0 < np.abs(after - before).max() <= 8


def test_large_faces_are_scaled_down_and_the_page_says_so(checked):
    photo = np.random.default_rng(0).integers(0, 256, (900, 700, 3), np.uint8)
    shown = photo_pictures(photo, photo, np.array([0.1, 0.1, 0.8, 0.8]))
    pairs = (shown.thumbnail, shown.photo, shown.face)
    assert [max(pair.width, pair.height) for pair in pairs] == [128, 480, 480]
    assert shown.photo.scale == pytest.approx(480 / 900)
    # The face's box, 0.2 of it on each side, and the photo ends there.
    assert 0.5 < shown.face.scale < 0.6
    large = replace(checked, photos=(replace(checked.photos[0], pictures=shown), *checked.photos[1:]))
    assert "Scaled down to 53 % for this page." in page(large)


def test_without_pictures_the_page_starts_with_words(checked):
    bare = replace(checked, photos=tuple(replace(photo, pictures=None) for photo in checked.photos))
    assert "<img" not in page(bare)
    assert 'class="scroll strip"' not in page(bare)
    assert all(line in page(bare) for line in checked.summary())


@pytest.mark.promise("P17")
def test_only_an_older_report_is_replaced(checked, tmp_path):
    path = tmp_path / "report.html"
    write_page(checked, path)
    write_page(checked, str(path))
    assert path.read_text(encoding="utf-8").startswith(FIRST_LINE)
    (tmp_path / "mine.html").write_text("<!DOCTYPE html><p>mine")
    with pytest.raises(FileExistsError, match="exists and is no report of fastcloak check; name another file"):
        write_page(checked, tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "<!DOCTYPE html><p>mine"
    with pytest.raises(ValueError, match=r"name that ends in \.html or \.htm, got .*report\.jpg; rename it"):
        write_page(checked, tmp_path / "report.jpg")
    with pytest.raises(IsADirectoryError, match="got the folder"):
        write_page(checked, tmp_path)
    with pytest.raises(FileNotFoundError, match="make .*none first"):
        write_page(checked, tmp_path / "none" / "report.html")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine.html", "report.html"]
