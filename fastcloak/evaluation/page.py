"""A check as one HTML file: pictures, style and script are inside, and the file forbids itself any network."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from fastcloak.evaluation.check import GAIN
from fastcloak.evaluation.results import FacePictures, ModelCheck, PhotoCheck, Side
from fastcloak.evaluation.text import counted, decibel, percent, plain_name, short
from fastcloak.evaluation.verdict import Check, recognised_words, starred
from fastcloak.system.files import atomic_write

__all__ = ["check_page_may_go_to", "page", "write_page"]

SUFFIXES = (".html", ".htm")
# The first line of every report, by which an older one is known.
FIRST_LINE = "<!DOCTYPE html><!-- fastcloak check -->"

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #57606a; --paper: #ffffff; --card: #f6f8fa; --line: #d0d7de;
  --good: #116329; --bad: #a40e26; --link: #0550ae; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9da7b1; --paper: #0d1117; --card: #161b22;
  --line: #3d444d; --good: #56d364; --bad: #ff8f87; --link: #79c0ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1rem; font-weight: 600; color: var(--dim); margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 40px 0 8px; }
h3 { font-size: 1rem; margin: 24px 0 8px; }
p { margin: 8px 0; max-width: 75ch; }
.headline { font-size: 1.6rem; line-height: 1.25; font-weight: 650; max-width: 32ch; margin: 0 0 16px; }
.dim { color: var(--dim); }
.small { font-size: 0.875rem; }
.good { color: var(--good); }
.bad { color: var(--bad); }
li { margin: 4px 0; max-width: 75ch; overflow-wrap: anywhere; }
ul { padding-left: 20px; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; margin: 12px 0; }
.scroll:focus-visible, summary:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { border-top: 0; background: var(--card); vertical-align: bottom; font-weight: 600; }
th:first-child { text-align: left; }
tr:not(.group) > th:first-child { position: sticky; left: 0; }
tbody tr:not(.group) > th:first-child { background: var(--paper); }
tbody th { font-weight: 500; }
tbody tr.group th { background: var(--card); font-weight: 650; text-align: left; }
details { border: 1px solid var(--line); border-radius: 8px; margin: 8px 0; }
summary { cursor: pointer; padding: 10px 14px; overflow-wrap: anywhere; }
summary .name { font-weight: 600; }
details > .inside { padding: 4px 14px 14px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 240px), 1fr)); gap: 16px;
  max-width: 976px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 0.875rem; color: var(--dim); margin-top: 6px; }
figure img { display: block; width: 100%; height: auto; }
.compare { position: relative; overflow: hidden; border-radius: 6px; --cut: 50%; }
.compare .top { position: absolute; inset: 0; height: 100%; clip-path: inset(0 calc(100% - var(--cut)) 0 0); }
.compare .edge { position: absolute; top: 0; bottom: 0; left: var(--cut); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 3px #000; pointer-events: none; }
.compare .edge::after { content: "\\2194"; position: absolute; top: 50%; left: 50%; width: 36px; height: 36px;
  margin: -18px; border-radius: 50%; background: #fff; color: #1b1f24; display: grid; place-items: center;
  box-shadow: 0 0 4px #000; }
.compare .tag { position: absolute; top: 8px; padding: 1px 8px; border-radius: 4px; background: rgba(0, 0, 0, 0.75);
  color: #fff; font-size: 0.75rem; pointer-events: none; }
.compare .tag.one { left: 8px; }
.compare .tag.two { right: 8px; }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize;
  touch-action: pan-y; -webkit-appearance: none; appearance: none; }
.compare input::-webkit-slider-thumb { -webkit-appearance: none; width: 2px; height: 100%; }
.compare input::-moz-range-thumb { width: 2px; height: 100%; border: 0; }
.compare:focus-within { outline: 3px solid var(--link); outline-offset: 2px; }
.changed img { border-radius: 6px; }
@media (max-width: 600px) { th, td { padding: 6px 8px; } details > .inside { padding: 4px 8px 8px; } }
.facts { display: flex; flex-wrap: wrap; gap: 4px 24px; margin: 12px 0; padding: 0; font-size: 0.875rem; }
.facts div { display: flex; gap: 6px; }
.facts dt { color: var(--dim); }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; }
"""

SCRIPT = """
for (const input of document.querySelectorAll(".compare input")) {
  const show = () => {
    input.parentElement.style.setProperty("--cut", input.value + "%");
    input.setAttribute("aria-valuetext", input.value + " % original");
  };
  input.addEventListener("input", show);
  show();
}
"""


def write_page(check: Check, path: str | PathLike[str]) -> None:
    """Write a check as one HTML file, whole or not at all.

    Args:
        check: of `check_photos`; with `keep_pictures=True` it shows the faces.
        path: ends in .html or .htm. An older report is replaced, no other file is.

    Raises:
        ValueError: another ending.
        FileExistsError: there is another file of that name.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_page_may_go_to(path)
    atomic_write(path, page(check).encode())


def check_page_may_go_to(path: Path) -> None:
    """Refuse a place for a report.

    Raises:
        ValueError: a name that does not end in .html or .htm.
        IsADirectoryError: a folder.
        FileNotFoundError: no such folder.
        FileExistsError: a file that is no report.
    """
    if path.is_dir():
        raise IsADirectoryError(f"the report must be a file such as report.html, got the folder {path}; add a name")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the report must have a name that ends in {' or '.join(SUFFIXES)}, got {path}; rename it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the report must be in a folder that exists, got {path}; make {path.parent} first")
    if path.exists():
        with open(path, "rb") as file:
            if file.read(len(FIRST_LINE)) != FIRST_LINE.encode():
                raise FileExistsError(f"{path} is there and is no report of fastcloak check; name another file")


def page(check: Check) -> str:
    """Turn a check into the text of an HTML page that needs nothing but itself.

    Args:
        check: of `check_photos`.
    """
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_hash(STYLE)}'",
            f"script-src '{_hash(SCRIPT)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    headline, *more = check.summary()
    parts = [
        FIRST_LINE,
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{_text(headline)} fastcloak check</title><style>{STYLE}</style></head><body><main>",
        f'<h1>fastcloak check</h1><p class="headline">{_text(headline)}</p>',
        *(f"<p>{_text(line)}</p>" for line in more),
        *_omissions(check),
        *(_findings(check) if check.photos else []),
        f"</main><script>{SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(parts)


def _findings(check: Check) -> list[str]:
    return [
        "<h2>Networks, photos as saved</h2>",
        _model_table(check),
        "<h2>What is left after saving and resizing</h2>",
        "<p>In how many photos the person is recognised: protected, and in brackets the originals after the same. "
        "A dash: no threshold is known.</p>",
        _survival_table(check),
        _details("All numbers", _rate_table(check)),
        f"<h2>{'The photo' if len(check.photos) == 1 else f'The {len(check.photos)} photos'}</h2>",
        *(_photo(check, i, photo) for i, photo in enumerate(check.photos)),
        "<h2>Limits</h2><ul>",
        *(f"<li>{_text(line)}</li>" for line in check.limits()),
        "</ul>",
    ]


def _omissions(check: Check) -> list[str]:
    lines = check.omissions()
    if not lines:
        return []
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    count = counted(len(check.omitted) + len(check.failed), "file")
    return [_details(f"{count} not checked", f"<ul>{items}</ul>", open_=True)]


def _model_table(check: Check) -> str:
    head = ["network", "recognised in", "before", "cosine", "before", "threshold"]
    alone = len(check.photos) == 1
    praise = "" if any(photo.unchanged for photo in check.photos) else "good"
    rated = [name for name in ("Top-1", "Top-5", "linkage") if check.models[0].as_saved.after.rates is not None]
    rows = []
    for model in check.models:
        before, after = model.as_saved.before, model.as_saved.after
        rows.append(
            (
                starred(model),
                _cell(recognised_words(after), "bad" if True in after.recognised else praise * _judged(after)),
                recognised_words(before),
                short(after.own if alone else after.others),
                short(before.own if alone else before.others),
                "-" if model.threshold is None else f"{model.threshold.value:.3f}",
                *(() if after.rates is None else (f"{percent(rate)} %" for rate in after.rates[:3])),
            )
        )
    words = [f"cosine: of a protected photo with {'its own original' if alone else 'the other originals, their mean'}."]
    if rated:
        words.append(
            "Top-1, Top-5, higher is better: pairs whose clean photo is not among the network's 1 or 5 best matches "
            f"among {check.distractors} distractors. linkage, lower is better: pairs where the protected photos match "
            "each other first."
        )
    if any(model.white_box for model in check.models):
        words.append("* the cloak was learnt on this network (white box).")
    return _table("What each network makes of the photos as saved", [*head, *rated], rows) + _notes(words)


def _survival_table(check: Check) -> str:
    rows = [
        (
            name,
            *(
                "-"
                if model.threshold is None
                else f"{recognised_words(model.survivals[i].after)} ({recognised_words(model.survivals[i].before)})"
                + _no_face(model.survivals[i].after)
                for model in check.models
            ),
        )
        for i, name in enumerate(check.survivals)
    ]
    return _table("Photos in which the person is recognised", ("photos", *map(starred, check.models)), rows)


def _rate_table(check: Check) -> str:
    head = (
        "photos",
        "no face",
        "own original",
        "other originals",
        "before",
        "pairs accepted",
        "before",
        "protected pairs accepted",
        "before",
        "Top-1",
        "before",
        "Top-5",
        "before",
        "linkage",
        "before",
    )
    rows: list[Sequence[str | _Cell]] = []
    for model in check.models:
        rows.append((starred(model),))
        for one in model.survivals:
            before, after = one.before, one.after
            rates = [
                "-" if side.rates is None else f"{percent(side.rates[k])} %"
                for k in range(3)
                for side in (after, before)
            ]
            rows.append(
                (
                    one.survival,
                    str(after.no_face),
                    short(after.own),
                    short(after.others),
                    short(before.others),
                    *map(_percent, (after.accepted, before.accepted, after.linked, before.linked)),
                    *rates,
                )
            )
    words = (
        "own original, other originals: mean cosine of a protected photo with them.",
        "pairs accepted: pairs of a protected photo and another original that reach the threshold; protected pairs: "
        "pairs of two protected photos.",
        "Top-1, Top-5: pairs whose clean photo is not among the 1 or 5 best matches among the distractors; higher "
        "protects more. linkage: pairs where the protected photos match each other first; lower is better.",
        "before: the same for the originals, after the same change.",
    )
    return _table("Every number of every network", head, rows) + _notes(words)


def _photo(check: Check, index: int, photo: PhotoCheck) -> str:
    verdict = check.verdict(index)
    shown = f'<span class="name">{_text(photo.name)}</span> <span class="dim">{_text(verdict)}</span>'
    inside = "" if photo.pictures is None else _pictures(photo.pictures, photo.name)
    facts = [
        ("photo", f"{photo.width} x {photo.height} pixels, {photo.faces} face{'s' * (photo.faces != 1)} found"),
        ("largest change", "-" if photo.largest_change is None else f"{photo.largest_change} of 255 grey levels"),
        ("PSNR", f"{decibel(photo.psnr)} whole photo, {decibel(photo.face_psnr)} face, in dB"),
        ("SSIM", f"{short([photo.ssim])} whole photo, {short([photo.face_ssim])} face"),
    ]
    inside += (
        '<dl class="facts">'
        + "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts)
        + "</dl>"
    )
    head = ("photo", "verdict", "before", "nearest original", "before", "other originals", "before", "own original")
    rows: list[Sequence[str | _Cell]] = []
    for model in check.models:
        rows.append((starred(model) + _threshold_words(model),))
        for one in model.survivals:
            before, after = one.before, one.after
            rows.append(
                (
                    one.survival,
                    _verdict(after, index, quiet=photo.unchanged),
                    _verdict(before, index, quiet=True),
                    short([after.nearest[index]]),
                    short([before.nearest[index]]),
                    short([after.others[index]]),
                    short([before.others[index]]),
                    short([after.own[index]]),
                )
            )
    table = _table(f"Cosines of {plain_name(photo.name)} with the originals", head, rows)
    return _details(shown, inside + table, open_=index == 0, escaped=True)


def _pictures(pictures: FacePictures, name: str) -> str:
    shown = _text(name)
    size = f'width="{pictures.width}" height="{pictures.height}"'
    scale = (
        "The photo's own pixels."
        if pictures.scale == 1
        else f"Scaled down to {100 * pictures.scale:.0f} % for this page."
    )
    return (
        '<div class="pictures"><figure>'
        f'<div class="compare"><img {size} src="{_uri(pictures.protected)}" alt="Face of {shown}, protected">'
        f'<img class="top" {size} src="{_uri(pictures.original)}" alt="Face of {shown}, original">'
        '<span class="tag one">original</span><span class="tag two">protected</span><span class="edge"></span>'
        f'<input type="range" min="0" max="100" value="50" aria-label="Original or protected: {shown}"></div>'
        f"<figcaption>Original | protected: drag, or use the arrow keys. {scale}</figcaption></figure>"
        f'<figure class="changed"><img {size} src="{_uri(pictures.difference)}" '
        f'alt="Difference of {shown}, {GAIN} times as large">'
        f"<figcaption>Difference x{GAIN}. Grey is unchanged.</figcaption></figure></div>"
    )


class _Cell(str):
    """A table cell that is HTML already."""


def _cell(text: str, kind: str = "") -> _Cell:
    return _Cell(f'<span class="{kind}">{_text(text)}</span>' if kind else _text(text))


def _verdict(side: Side, index: int, *, quiet: bool = False) -> _Cell:
    recognised = side.recognised[index]
    if side.own[index] is None:
        return _cell("no face found")
    if recognised is None:
        return _cell("-")
    words = "recognised" if recognised else "not recognised"
    return _cell(words, "" if quiet else "bad" if recognised else "good")


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str | _Cell]]) -> str:
    """Cells are text, or HTML where they are a `_Cell`; a row of one cell heads a group."""
    lines = [
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(caption)}"><table><thead><tr>',
        *(f'<th scope="col">{_text(name)}</th>' for name in head),
        "</tr></thead><tbody>",
    ]
    for row in rows:
        first, *cells = (cell if isinstance(cell, _Cell) else _text(cell) for cell in row)
        if not cells:
            lines.append(f'<tr class="group"><th scope="rowgroup" colspan="{len(head)}">{first}</th></tr>')
        else:
            lines.append(f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "".join([*lines, "</tbody></table></div>"])


def _details(summary: str, inside: str, *, open_: bool = False, escaped: bool = False) -> str:
    shown = summary if escaped else _text(summary)
    return f'<details{" open" * open_}><summary>{shown}</summary><div class="inside">{inside}</div></details>'


def _notes(lines: Iterable[str]) -> str:
    return "".join(f'<p class="small dim">{_text(line)}</p>' for line in lines)


def _threshold_words(model: ModelCheck) -> str:
    return ", no threshold known" if model.threshold is None else f", threshold {model.threshold.value:.3f}"


def _no_face(side: Side) -> str:
    return f", no face in {side.no_face}" if side.no_face else ""


def _judged(side: Side) -> bool:
    return False in side.recognised


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{percent(share)} %"


def _text(text: str) -> str:
    return html.escape(plain_name(text))


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
