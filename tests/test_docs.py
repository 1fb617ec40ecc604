"""README and docs: size, links, rows behind the figures, and that their commands, Python and examples run."""

import argparse
import ast
import csv
import inspect
import re
import runpy
import shlex
import shutil
import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

import pytest

import fastcloak
from fastcloak.cli.main import main
from fastcloak.cli.options import default_in_words
from fastcloak.fitting.options import FitConfig, declared
from fastcloak.system.packages import orl_folder
from fastcloak.tailoring.options import TailorConfig

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md")), *ROOT.glob("docs/*.md")]
}
EXAMPLES = sorted(ROOT.glob("docs/examples/*.py"))
SCRIPTS = [*EXAMPLES, ROOT / "docs" / "picture.py"]


def code(language=""):
    """(page, text) of every fenced block of a language; "" is one without."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [(page, block) for page, text in PAGES.items() for name, block in fence.findall(text) if name == language]


def commands():
    """Arguments of every `fastcloak ...` in blocks and between backquotes; a name alone becomes a call for help."""
    found = {}
    for page, block in code():
        for line in block.replace("\\\n", " ").splitlines():
            if "fastcloak " not in line:
                continue
            words = shlex.split(line, comments=True)
            for start in [at for at, word in enumerate(words) if word == "fastcloak"]:
                stop = next((at for at in range(start, len(words)) if words[at] in ("&&", "||")), len(words))
                found[f"{page}: {line.split('#')[0].strip()}"] = words[start + 1 : stop]
    for page, text in PAGES.items():
        for span in re.findall(r"`fastcloak ([a-z][^`]*)`", " ".join(text.split())):
            words = shlex.split(span)
            found.setdefault(f"{page}: {span}", [*words, "--help"] if len(words) == 1 else words)
    return found


COMMANDS = commands()


@pytest.mark.parametrize(("page", "most_lines", "most_words"), [("README.md", 100, 900), ("docs/method.md", 200, 2500)])
def test_first_pages_stay_short(page, most_lines, most_words):
    assert len(PAGES[page].splitlines()) <= most_lines
    assert len(PAGES[page].split()) <= most_words


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_prose_are_at_most_100_columns(page):
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"<!-- ([a-z ]*options) -->.*?<!-- /\1 -->", "", prose, flags=re.DOTALL)
    # An address cannot be broken.
    long = [line for line in prose.splitlines() if len(line) > 100 and line[0] != "|" and "](http" not in line]
    assert long == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


def test_every_file_of_rows_is_named_and_every_named_one_is_there():
    text = "\n".join(PAGES.values())
    named = {name for name in re.findall(r"[\w*]+\.(?:csv|json|txt|svg|png)\b", text) if list(RESULTS.glob(name))}
    for name in re.findall(r"bench/results/([\w*]+\.\w+)", text):
        # NET stands for a network, and what a reader makes with `-o` need not be there.
        assert list(RESULTS.glob(name.replace("NET", "*"))) or f"-o bench/results/{name}" in text, name
    there = {path.name for path in RESULTS.iterdir() if path.suffix in (".csv", ".json", ".txt")}
    found = {path.name for name in [*named, "ladder_cpu_*.csv"] for path in RESULTS.glob(name)}
    assert there - found == set()


@pytest.mark.parametrize(
    ("label", "row"),
    [
        ("random mask", "random"),
        ("OPOM", "opom convex_hull"),
        ("`plain`", "ga convex_hull"),
        ("`fast`", "preset fast"),
        ("`balanced`", "preset balanced"),
        ("`strong`", "preset strong"),
    ],
)
def test_protection_in_the_readme_and_results_is_the_committed_rows(label, row):
    name = "protection_lfw_heldout20_jitter.csv" if row.startswith("preset") else "protection_lfw_heldout20.csv"
    with open(RESULTS / name, newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["row"] == row and line["white_box"] == "False"]
    lines = [line for line in lines if line["target"] != "w600k_mbf"]  # which has a line of its own
    saved, jpeg = ([line for line in lines if line["survival"] == name] for name in ("saved", "jpeg75"))
    expected = [100 * mean(float(line[name]) for line in some) for some, name in ((saved, "top1"), (jpeg, "top1"))]
    expected.append(100 * mean(float(line["linkage"]) for line in saved))
    for page in ("README.md", "docs/results.md"):
        line = re.search(rf"^\| (?:GA(?:-OPOM)? )?{re.escape(label)}[ ,(].*\|$", PAGES[page], re.MULTILINE)[0]
        figures = [float(cell) for cell in line.split("|") if re.fullmatch(r" [\d.]+ ", cell)]
        assert all(any(abs(figure - number) < 0.051 for figure in figures) for number in expected), line


@pytest.mark.parametrize(
    ("label", "row"),
    [("original", "clean"), ("one cloak (`strong`)", "universal strong"), ("tailored (default)", "tailored")],
)
def test_albums_in_the_readme_are_the_committed_rows(label, row):
    with open(RESULTS / "tailored_lfw.csv", newline="") as file:
        (line,) = [
            line
            for line in csv.DictReader(file)
            if (line["row"], line["file"], line["count"]) == (row, "JPEG 95", "20")
        ]
    rates = [float(line["accepted"]), 1 - float(line["top1"]), float(line["linkage"])]
    cells = [*(f"{100 * rate:.1f}" for rate in rates), f"{float(line['ssim']):.3f}".replace("1.000", "1")]
    assert f"| {label} | {' | '.join(cells)} |" in PAGES["README.md"]


@pytest.mark.parametrize(("net", "name"), [("iresnet50", "iResNet-50"), ("mobilefacenet", "MobileFaceNet")])
def test_speed_in_the_readme_is_the_committed_rows(net, name):
    with open(RESULTS / f"ladder_cpu_{net}.csv", newline="") as file:
        rungs = {
            line["rung"]: line
            for line in csv.DictReader(file)
            if (line["objective"], line["threads"]) == ("fi_uap", "2")
        }
    seconds = [f"{float(rungs[rung]['seconds_per_image_gradient']):.3g}" for rung in ("published", "fit")]
    times = f"{float(rungs['fit']['times_faster_than_published']):.1f}"
    assert f"| {name} | {seconds[0]} | {seconds[1]} | {times} |" in PAGES["README.md"]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_docs_parse(line, monkeypatch, capsys):
    class Parsed(BaseException):
        pass

    parse = argparse.ArgumentParser.parse_args

    def only_parse(*arguments):
        parse(*arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    with pytest.raises((Parsed, SystemExit)) as ended:
        main(COMMANDS[line])
    assert getattr(ended.value, "code", 0) == 0, capsys.readouterr().err


def test_commands_of_the_bench_exist():
    for module in set(re.findall(r"python -m (bench[.\w]*)", "\n".join(PAGES.values()))):
        assert find_spec(module) is not None, module


@pytest.mark.parametrize("source", [*(block for _, block in code("python")), *(path.read_text() for path in SCRIPTS)])
def test_python_names_what_exists(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("fastcloak"):
            assert {name.name for name in node.names} <= set(dir(import_module(node.module)))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fastcloak":
            assert node.attr in fastcloak.__all__
        if isinstance(node, ast.Call) and re.fullmatch(r"fastcloak\.\w+", ast.unparse(node.func)):
            options = dict.fromkeys(option.arg for option in node.keywords)
            inspect.signature(getattr(fastcloak, node.func.attr)).bind_partial(*node.args, **options)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with ORL's photos where the docs have theirs; fits take one step."""
    for path, person, photos in (
        ("photos/of/me", 1, 3),
        ("my/other/photos", 1, 2),
        ("album", 1, 2),
        ("people/anna", 1, 8),
        ("people/ben", 2, 8),
        ("photos/of/others", 3, 2),
    ):
        (tmp_path / path).mkdir(parents=True)
        for photo in range(1, photos + 1):
            shutil.copy(orl_folder() / f"s{person}" / f"{photo}.pgm", tmp_path / path)
    shutil.copy(orl_folder() / "s1" / "9.pgm", tmp_path / "party.jpg")
    monkeypatch.chdir(tmp_path)
    for name, cheap in {
        "fit": "steps",
        "fit_many": "steps",
        "tailor": "gradients",
        "tailor_photos": "gradients",
    }.items():
        monkeypatch.setattr(fastcloak, name, partial(getattr(fastcloak, name), **{cheap: 1}))
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/use.md"])
def test_python_of_the_page_runs(page, home, capsys):
    (source,) = [block for name, block in code("python") if name == page]
    exec(compile(source, page, "exec"), {})
    assert (home / "party-safe.jpg").exists()
    assert "Top-1" in capsys.readouterr().out


def test_bytes_of_an_app_are_protected(home):
    (source,) = [block for name, block in code("python") if "uploaded" in block]
    upload = (home / "party.jpg").read_bytes()
    names = {"fastcloak": fastcloak, "uploaded": upload, "cloak": fastcloak.fit("photos/of/me", "sface")}
    exec(compile(source, "docs/apps.md", "exec"), names)
    assert names["safe"].startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("name", "arguments", "written"),
    [
        ("album", ["photos/of/me", "album", "safe"], "safe/2.pgm"),
        ("app", ["people", "cloaks", "party.jpg", "safe.jpg"], "safe.jpg"),
        ("research", ["people", "photos/of/others"], "party.jpg"),
    ],
)
def test_examples_run(name, arguments, written, home, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(ROOT / "docs" / "examples" / f"{name}.py"), run_name="__main__")
    assert (home / written).exists()
    assert capsys.readouterr().out


def test_every_example_is_run():
    assert [path.stem for path in EXAMPLES] == ["album", "app", "research"]


OPTIONS = {"options": FitConfig, "tailor options": TailorConfig}
"""What stands between marks of docs/use.md, and whose options they are."""


def options_table(config):
    """What docs/use.md says of options, from their declarations; `python -m tests.test_docs` writes it."""
    lines = ["| option | default | what it does |", "| --- | --- | --- |"]
    for name, option in declared(config).items():
        what = option.help.replace("|", "\\|")
        lines.append(f"| `{name}` | {default_in_words(name, config)} | {what} |")
    return "\n".join(lines)


@pytest.mark.parametrize("mark", OPTIONS)
def test_the_table_of_options_is_what_the_code_declares(mark):
    between = re.search(rf"<!-- {mark} -->\n(.*?)\n<!-- /{mark} -->", PAGES["docs/use.md"], re.DOTALL)
    assert between[1] == options_table(OPTIONS[mark])


if __name__ == "__main__":
    page = ROOT / "docs" / "use.md"
    for mark, config in OPTIONS.items():
        marked = re.compile(rf"(?<=<!-- {mark} -->\n).*?(?=<!-- /{mark} -->)", re.DOTALL)
        table = options_table(config) + "\n"
        page.write_text(marked.sub(lambda _, new=table: new, page.read_text(encoding="utf-8")), encoding="utf-8")
