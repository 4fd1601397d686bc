"""The project as `pip install` gets it: a wheel of this tree, and a fresh environment that it is installed into."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this tree in a folder; return its path."""
    tree = folder / "tree"
    keep = shutil.ignore_patterns("__pycache__", ".*", "outputs", "tests", "build", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=keep, symlinks=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(folder), str(tree)], check=True, capture_output=True)
    (wheel,) = folder.glob("stillhouse-*.whl")
    return wheel


def fresh_environment(folder: Path, wheel: Path) -> Path:
    """Make an environment with the wheel in it, beside what this one has installed; return its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    others = folder / "lib" / version / "site-packages" / "dependencies.pth"  # seconds instead of a download of 6 GB
    others.write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    return python.parent
