"""A check as one HTML file: pictures first, then what was found in words, then tables.

Pictures, style and script are inside, and the file forbids itself any network.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable
from importlib import resources
from os import PathLike
from pathlib import Path

from fastcloak.evaluation.results import PicturePair
from fastcloak.evaluation.text import Bad, Good, Table, counted, decibel, plain_name, rounded
from fastcloak.evaluation.verdict import Check, face_quality
from fastcloak.evaluation.versions import GAIN
from fastcloak.system.files import atomic_write

SUFFIXES = (".html", ".htm")
# The first line of every report, by which an older one is known.
FIRST_LINE = "<!DOCTYPE html><!-- fastcloak check -->"
# In CSS pixels. A face close up is shown at three times its own pixels where there is room; narrower sliders have no
# room for the words on them.
CLOSE_UP, CLOSE_UP_WIDTH, LEAST_TAGGED = 3, 480, 200


def write_page(check: Check, path: str | PathLike[str]) -> None:
    """Write a check as one HTML file, whole or not at all.

    Args:
        check: of `check_photos`; with `keep_pictures=True` it shows the faces.
        path: ends in .html or .htm. An older report is replaced, no other file is.

    Raises:
        ValueError: another ending.
        FileExistsError: there is another file of that name.
        OSError: the file cannot be written; among these, IsADirectoryError and FileNotFoundError, no such folder.
    """
    path = Path(path)
    check_page_may_go_to(path)
    atomic_write(path, page(check).encode())


def check_page_may_go_to(path: Path) -> None:
    """Refuse a path that is a folder, in no folder, no name of a page, or a file that is no report."""
    if path.is_dir():
        raise IsADirectoryError(f"the report must be a file such as report.html, got the folder {path}; add a name")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the report must have a name that ends in {' or '.join(SUFFIXES)}, got {path}; rename it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the report must be in a folder that exists, got {path}; make {path.parent} first")
    if path.exists():
        with open(path, "rb") as file:
            if file.read(len(FIRST_LINE)) != FIRST_LINE.encode():
                raise FileExistsError(f"{path} exists and is no report of fastcloak check; name another file")


def page(check: Check) -> str:
    """Turn a check into the text of an HTML page that needs nothing but itself."""
    room = resources.files("fastcloak.evaluation")
    style, script = ((room / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    headline, *more = check.summary()
    parts = [
        FIRST_LINE,
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{_text(headline)} fastcloak check</title><style>{style}</style></head><body><main>",
        f'<h1>fastcloak check</h1><p class="headline">{_text(headline)}</p>',
        *_looks(check),
        *_each("p", more),
    ]
    omissions = check.omissions()
    if omissions:
        count = counted(len(check.omitted) + len(check.failed), "file")
        parts.append(_details(f"{count} not checked", f"<ul>{''.join(_each('li', omissions))}</ul>", unfolded=True))
    if check.photos:
        for table in (check.network_table(), check.post_processing_table(), check.photo_table()):
            parts += [f"<h2>{_text(table.title)}</h2>", _table(table)]
        numbers = check.number_table()
        parts += [_details(_text(numbers.title), _table(numbers)), f"<h2>{counted(len(check.photos), 'photo')}</h2>"]
        parts += [_photo(check, i) for i in range(len(check.photos))]
        parts += ["<h2>Limits</h2><ul>", *_each("li", check.limits()), "</ul>"]
    parts.append(f"</main><script>{script}</script></body></html>\n")
    return "\n".join(parts)


def _looks(check: Check) -> list[str]:
    """The photos as people see them: all of them small, then each at reading size and close up."""
    thumbnails, cards = [], []
    for i, photo in enumerate(check.photos):
        if photo.pictures is None:
            continue
        name, pictures = _text(photo.name), photo.pictures
        original, protected = _images(pictures.thumbnail, f"{name} as in an album")
        thumbnails.append(f'<li><a href="#photo-{i + 1}">{original}{protected}<span>{name}</span></a></li>')
        face = pictures.face
        times = min(CLOSE_UP, CLOSE_UP_WIDTH / max(face.width, face.height)) if face.scale == 1 else 1.0
        cards.append(
            f'<div class="card" id="photo-{i + 1}"><p><span class="name">{name}</span> '
            f'<span class="dim">{_text(check.verdict(i))}</span></p><div class="pictures">'
            + _slider(pictures.photo, name, "at reading size", "At reading size.")
            + _slider(face, name, "close up", _close_up(face.scale, times), times)
            + "</div></div>"
        )
    if not cards:
        return []
    more = " Scroll sideways, or choose one above, for the others." if len(cards) > 1 else ""
    return [
        '<div class="scroll" tabindex="0" role="region" aria-label="All photos, as in an album"><ul class="album">',
        *thumbnails,
        '</ul></div><p class="small dim">As in an album: each original, and the protected photo right of it.</p>',
        '<div class="scroll strip" tabindex="0" role="region" aria-label="Each photo at reading size and close up">',
        *cards,
        f'</div><p class="small dim">Original | protected: drag, or use the arrow keys.{more}</p>',
    ]


def _close_up(scale: float, times: float) -> str:
    if scale < 1:
        size = f" Scaled down to {100 * scale:.0f} % for this page."
    else:
        size = f" Up to {times:.1f} times the photo's own pixels." if times > 1 else ""
    return f"The face close up.{size}"


def _photo(check: Check, index: int) -> str:
    photo = check.photos[index]
    whole = "-" if photo.largest_change is None else str(photo.largest_change)
    face = face_quality(photo)
    facts = {
        "photo": f"{photo.width} x {photo.height} pixels, {counted(photo.faces, 'face')} found",
        "largest change": f"{whole} whole photo, {face['change']} face, of 255 grey levels",
        "PSNR": f"{decibel(photo.psnr)} whole photo, {face['PSNR']} face, in dB",
        "SSIM": f"{rounded(photo.ssim, 3)} whole photo, {face['SSIM']} face",
        "CIEDE2000": f"{face['CIEDE2000']} face",
        "SSIMULACRA2": f"{face['SSIMULACRA2']} face",
    }
    listed = "".join(f"<div><dt>{name}</dt><dd>{fact}</dd></div>" for name, fact in facts.items())
    changed = ""
    if photo.pictures:
        alt = f"Difference of {_text(photo.name)}, {GAIN} times as large"
        changed = (
            f"<figure>{_image(photo.pictures.difference, photo.pictures.face, alt)}"
            f"<figcaption>Difference x{GAIN}. Grey is unchanged.</figcaption></figure>"
        )
    return _details(
        f'<span class="name">{_text(photo.name)}</span> <span class="dim">{_text(check.verdict(index))}</span>',
        f'<dl class="facts">{listed}</dl>{changed}{_table(check.cosine_table(index))}',
        unfolded=index == 0,
    )


def _slider(pair: PicturePair, name: str, where: str, caption: str, times: float = 1.0) -> str:
    original, protected = _images(pair, f"{name} {where}", times)
    tags = '<span class="tag one">original</span><span class="tag two">protected</span>'
    return (
        f'<figure><div class="compare">{protected}<span class="top">{original}</span>'
        f'{tags if times * pair.width >= LEAST_TAGGED else ""}<span class="edge"></span>'
        f'<input type="range" min="0" max="100" value="50" aria-label="Original or protected: {name} {where}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _images(pair: PicturePair, what: str, times: float = 1.0) -> list[str]:
    sides = {"original": pair.original, "protected": pair.protected}
    return [_image(png, pair, f"{what}, {side}", times) for side, png in sides.items()]


def _image(png: bytes, size: PicturePair, alt: str, times: float = 1.0) -> str:
    width, height = round(times * size.width), round(times * size.height)
    data = base64.b64encode(png).decode()
    return f'<img width="{width}" height="{height}" src="data:image/png;base64,{data}" alt="{alt}">'


def _table(table: Table) -> str:
    lines = [
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(table.title)}"><table><thead><tr>',
        *(f'<th scope="col">{_text(name)}</th>' for name in table.header),
        "</tr></thead><tbody>",
    ]
    for first, *cells in table.rows:
        if cells:
            lines += [f'<tr><th scope="row">{_text(first)}</th>', *map(_cell, cells), "</tr>"]
        else:
            span = f'scope="rowgroup" colspan="{len(table.header)}"'
            lines.append(f'<tr class="group"><th {span}>{_text(first)}</th></tr>')
    lines.append("</tbody></table></div>")
    return "".join([*lines, *(f'<p class="small dim">{_text(note)}</p>' for note in table.notes)])


def _cell(cell: str) -> str:
    tone = {Good: ' class="good"', Bad: ' class="bad"'}.get(type(cell), "")
    return f"<td{tone}>{_text(cell)}</td>"


def _details(summary: str, inside: str, *, unfolded: bool = False) -> str:  # both HTML
    return f'<details{" open" * unfolded}><summary>{summary}</summary><div class="inside">{inside}</div></details>'


def _each(tag: str, lines: Iterable[str]) -> list[str]:
    return [f"<{tag}>{_text(line)}</{tag}>" for line in lines]


def _text(text: str) -> str:
    return html.escape(plain_name(text))


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
