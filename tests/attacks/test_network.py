"""Nobody let in: a Ray that is started here listens on loopback, asks for its token, and keeps that to its user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.nodes.local import keep_token_private
from tests.conftest import small_recipe

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys, urllib.error, urllib.request
from pathlib import Path
import psutil, ray
from cluster.recipe.reading import load_recipe
from cluster.nodes.resources import ray_session

with ray_session(load_recipe(sys.argv[1]), stops_runs=True):  # with all that Ray has, as in a sweep
    ray.get(ray.remote(lambda: 1).remote())
    me, found = psutil.Process(), set()
    for process in (me, *me.children(recursive=True)):
        for one in process.net_connections("inet"):
            if one.status == psutil.CONN_LISTEN:
                found.add(one.laddr.ip.removeprefix("::ffff:"))
    url = "http://" + ray._private.worker.global_worker.node.webui_url
    statuses = {}
    for method, path in (("GET", "/api/jobs/"), ("POST", "/api/jobs/"), ("GET", "/api/version")):
        body = b'{"entrypoint": "id"}' if method == "POST" else None
        request = urllib.request.Request(url + path, body, {"Content-Type": "application/json"}, method=method)
        try:
            statuses[method + path] = urllib.request.urlopen(request, timeout=20).status
        except urllib.error.HTTPError as error:
            statuses[method + path] = error.code
print(json.dumps([sorted(found), statuses]))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_of_this_machine(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small_recipe(image_folder, tmp_path / "out")))
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    addresses, statuses = json.loads(done.stdout.splitlines()[-1])
    assert addresses == ["127.0.0.1"]
    assert statuses["POST/api/jobs/"] == statuses["GET/api/jobs/"] == 401
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_a_token_is_its_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    keep_token_private()
    path = tmp_path / ".ray" / "auth_token"
    assert path.stat().st_mode & 0o777 == 0o600
    token = path.read_text()
    assert len(token) == 64
    path.chmod(0o644)
    keep_token_private()
    assert (path.read_text(), path.stat().st_mode & 0o777) == (token, 0o600)
