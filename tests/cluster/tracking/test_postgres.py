"""MLflow behind PostgreSQL, as many runs at once would have it: no metric of any of them is lost."""

import getpass
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from cluster.recipe.reading import load_recipe
from cluster.tracking.folder import RunFolder
from tests.cluster.servers import MlflowServer, free_port, is_complete, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
NUM_RUNS = 4


@pytest.fixture(scope="module")
def database():
    """The URI of a new PostgreSQL server. It refuses to run as root, and is started as another user then."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.skip("PostgreSQL is absent: install Debian's package postgresql")
    pytest.importorskip(
        "psycopg2", reason="MLflow needs psycopg2 for PostgreSQL: cluster/deploy/requirements-mlflow.txt"
    )
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    folder, port = Path(tempfile.mkdtemp(prefix="stillhouse-postgres-")), free_port()
    shutil.chown(folder, user)
    programs, as_user = found[-1].parent, {"user": pwd.getpwnam(user).pw_uid, "cwd": folder}
    data = folder / "data"
    setup = [programs / "initdb", "-D", data, "--username=mlflow", "--auth=trust", "--encoding=UTF8", "--no-sync"]
    subprocess.run(setup, check=True, capture_output=True, **as_user)
    options = ["-D", data, "-k", folder, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([programs / "postgres", *options], stdout=log, stderr=log, **as_user)
    ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
    wait_for(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, 30)
    yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    server.terminate()
    server.wait(30)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(database, tmp_path_factory):
    one = MlflowServer(tmp_path_factory.mktemp("server"), database)
    one.start()
    yield one
    one.stop()


def test_parallel_runs_lose_nothing(server, recipe, tmp_path):
    """Four processes open their runs in one new experiment at once and log every step."""
    path = tmp_path / "recipe.yaml"
    every = {"tracking__every_steps": 1, "tracking__uri": server.uri, "tracking__system_metrics": True}
    path.write_text(yaml.safe_dump(recipe(train__epochs=6, scaling__num_workers=0, **every)))
    command = [sys.executable, "-m", "ops", "train", str(path)]
    runs = [
        subprocess.Popen([*command, f"name=run-{seed}", f"seed={seed}"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for seed in range(NUM_RUNS)
    ]
    for run in runs:
        _, complaints = run.communicate(timeout=300)
        assert run.returncode == 0, complaints[-2000:]
    ids = set()
    for seed in range(NUM_RUNS):
        config = load_recipe(path, [f"name=run-{seed}", f"seed={seed}"])
        run_id = RunFolder.of(config).run_id.read_text()
        assert is_complete(config, run_id)
        assert not RunFolder.of(config).outbox.exists()
        ids.add(run_id)
    assert len(ids) == NUM_RUNS
