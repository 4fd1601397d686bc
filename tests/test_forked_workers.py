"""A forked worker is what a started one is: its own group, environment, folder, arguments and settings of Ray."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray  # among those who need the server that these workers are forked from

SCRIPT = """
import json, os, subprocess, sys
from pathlib import Path
assert subprocess.run(["false"]).returncode == 1  # it may wait for processes of its own
Path("ended").touch()
loaded = [name in sys.modules for name in ("torch", "ray")]
print(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), os.getpid() == os.getpgrp(), loaded]))
"""
SETTING = (
    "from ray._raylet import Config, UniqueID; print(Config.health_check_period_ms(), UniqueID.from_random().hex())"
)


def test_a_process_of_its_own(worker_executable: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [*shlex.split(worker_executable), str(tmp_path / "script.py"), "--of", "a worker"]
    environment = {"PATH": os.environ["PATH"], "RAY_JOB_ID": "01"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=60)
    arguments, folder, found, is_leader, loaded = json.loads(done.stdout)
    assert (arguments, folder, is_leader, loaded) == (["--of", "a worker"], str(tmp_path), True, [True, True])
    assert {name: found[name] for name in environment} == environment
    assert "OMP_NUM_THREADS" not in found
    assert (tmp_path / "ended").exists(), "its end was not waited for"


def test_rays_core_has_its_own_settings_and_random_numbers(worker_executable: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SETTING)
    words = [*shlex.split(worker_executable), str(tmp_path / "script.py")]
    found = []
    for setting in ("777", "778", "777", "777"):
        environment = {"PATH": os.environ["PATH"], "RAY_health_check_period_ms": setting}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=60)
        found.append(done.stdout.split())
    settings, ids = zip(*found, strict=True)
    assert settings == ("777", "778", "777", "777")
    assert len(set(ids)) == 4, "Ray tells actors and tasks apart by such numbers"
