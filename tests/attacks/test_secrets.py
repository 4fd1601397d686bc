"""Nothing is told: a marker in every channel that takes a secret, looked for in everything that is written and said."""

from __future__ import annotations

import logging
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster import jobs
from cluster.parcel import pack_parcel
from cluster.provenance import Provenance
from cluster.recipe.paths import absolute
from cluster.recipe.reading import load_recipe, parse, to_yaml
from cluster.tracking.fields import flat_fields
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_tracker import tracking_uri
from kdcore.credentials import has_credentials, without_credentials
from kdcore.errors import Refused, RunFailed
from ops.__main__ import main
from ops.evaluation.image_names import folder_name
from ops.stores import run_link
from pipelines.places import Place
from tests.cluster.servers import MlflowServer
from tests.commands import Command
from tests.conftest import small_recipe

MARKER = "Xy7MARKERq2secret"

# {text: what is left of it}
TEXTS = {
    f"http://user:{MARKER}@host:5000/x?a=1": "http://host:5000/x?a=1",
    f"http://user:{MARKER}/{MARKER}@host": "http://host",
    f"http://user:a@{MARKER}@host": "http://host",
    f"https://{MARKER}@host/x": "https://host/x",
    f"https://host/x?sig={MARKER}&sv=1": "https://host/x?sv=1",
    f"s3://KEY:{MARKER}@bucket/a?region=x&secret_key={MARKER}&scheme=http": "s3://bucket/a?region=x&scheme=http",
    f"s3://bucket/a?access_key={MARKER}": "s3://bucket/a",
    f"gs://bucket/a?X-Goog-Signature={MARKER}": "gs://bucket/a",
    f"postgresql+psycopg2://me:{MARKER}@host/db": "postgresql+psycopg2://me@host/db",
    f"(http://u:{MARKER}@h/api), 'ftp://u:{MARKER}@k'": "(http://h/api), 'ftp://k'",
    "http://host:5000/a@b": "http://host:5000/a@b",
    "s3://bucket/path@2/x": "s3://bucket/path@2/x",
    "http://[::1]:50/x": "http://[::1]:50/x",
    "sqlite:////a/b.db": "sqlite:////a/b.db",
    "me@host and a: b@c": "me@host and a: b@c",
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_left_of_a_text(text: str) -> None:
    assert without_credentials(text) == TEXTS[text]
    assert without_credentials(TEXTS[text]) == TEXTS[text]


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "MLFLOW_TRACKING_PASSWORD"])
def test_secrets_of_the_environment_are_not_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, MARKER)
    assert without_credentials(f"the server says {MARKER}.") == "the server says ***."


@pytest.mark.parametrize("kind", [Refused, RunFailed])
def test_an_error_says_none(kind: type[Exception]) -> None:
    error = pickle.loads(pickle.dumps(kind(f"http://u:{MARKER}@h does not answer")))
    assert str(error) == "http://h does not answer"


def with_secrets(root: Path, output: Path) -> dict[str, object]:
    """A recipe with the marker wherever a recipe takes an address."""
    recipe = small_recipe(root, output, tracking__uri=f"http://me:{MARKER}@127.0.0.1:9")
    recipe["data"]["root"] = f"s3://KEY:{MARKER}@bucket/images?secret_key={MARKER}"
    recipe["checkpoint"] = {"storage": f"s3://KEY:{MARKER}@bucket/runs"}
    recipe["cache"] = {"dir": f"s3://KEY:{MARKER}@bucket/cache"}
    recipe["about"] = {"data": f"https://{MARKER}@example.org/images"}
    return recipe


def test_a_recipe_is_written_without(tmp_path: Path) -> None:
    config = parse(with_secrets(tmp_path, tmp_path))
    text = to_yaml(config)
    assert MARKER not in text
    again = parse(yaml.safe_load(text))
    assert (again.data.root, again.tracking.uri) == ("s3://bucket/images", None)
    assert config.data.name == "images"


def test_a_place_is_named_without() -> None:
    root = f"s3://KEY:{MARKER}@bucket/images?region=x&endpoint_override=127.0.0.1:9&scheme=http"
    place = Place.of(root, "data.root")
    assert (place.root, place.location) == ("s3://bucket/images", root)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (f"s3://KEY:{MARKER}@bucket/a/val?region=x&secret_key={MARKER}", "val"),
        (f"s3://KEY:{MARKER}@bucket/?region=x&session_token={MARKER}", "bucket"),
        (f"abfs://container@account.dfs.core.windows.net/val?sig={MARKER}&se=2027", "val"),
        ("file:///tmp/some%20images", "some-20images"),
        ("/tmp/some/val?x=1", "val-x-1"),
    ],
)
def test_the_name_of_evaluated_images_has_none(place: str, name: str) -> None:
    """It becomes the name of files, and of metrics on a server."""
    assert folder_name(place) == name


def test_a_link_to_a_run_has_none() -> None:
    assert run_link(f"http://me:{MARKER}@host:5000/", "1", "2") == "http://host:5000/#/experiments/1/runs/2"


def test_the_environments_credentials_belong_to_the_recipe_that_lost_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{MARKER}@host:5000")
    config = absolute(parse(small_recipe(tmp_path, tmp_path)), tmp_path)
    folder = RunFolder.of(config)
    folder.write_recipe(config)
    written = load_recipe(folder.recipe)
    assert written.tracking.uri is None
    assert "host:5000" not in folder.recipe.read_text()
    assert folder.store.read_text() == "http://host:5000\n"
    assert tracking_uri(written) == f"http://me:{MARKER}@host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{MARKER}@elsewhere:5000")
    assert tracking_uri(written) == "http://host:5000"
    folder.store.write_bytes(b"\xff\xfe")
    with pytest.raises(Refused, match="mlflow_store cannot be read"):
        tracking_uri(written)


def test_a_job_with_a_password_in_its_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "train",
        "kd",
        "data.root=/images",
        "output_dir=/out",
        "teacher.checkpoint=/t",
        f"tracking.uri=http://me:{MARKER}@host",
    ]
    assert main(["submit", "--address", "http://127.0.0.1:9", *words]) == 2
    said = capsys.readouterr()
    assert MARKER not in said.out + said.err
    assert "environment of its nodes" in said.err


def test_a_job_takes_no_secrets_along(tmp_path: Path) -> None:
    """Also where no repository says what belongs to the tree; what stays behind is named."""
    tree = tmp_path / "tree"
    hidden = (".env", ".env.local", "prod.env", "deploy/token", "deploy/api_token", "a/key.pem", "id_rsa", ".netrc")
    hidden += (".aws/credentials", "gcp-credentials.json", "deep/er/secrets.yaml", "private.key", "passwords.txt")
    kept = ("kdcore/credentials.py", "ops/train.py", "ops/recipes/kd.yaml", "kdcore/tokens.py")
    for name in (*hidden, *kept):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(MARKER if name in hidden else "code")
    for include in ([], [str(tree)]):
        parcel = pack_parcel(tree, include)
        assert set(parcel.files) == set(kept)
        assert set(parcel.secrets) == set(hidden)
    parcel.lay_out(tmp_path / "sent", Provenance("abc"))
    sent = [path for path in (tmp_path / "sent").rglob("*") if path.is_file()]
    assert not any(MARKER in path.read_text() for path in sent)


def test_the_tree_itself_loses_nothing() -> None:
    """No file of the project is taken for a secret."""
    assert pack_parcel(jobs.TREE).secrets == ()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


def leaks(*folders: Path) -> list[str]:
    """Every file that has the marker in it."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    return [str(path) for path in files if MARKER.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_marker_in_the_environment_is_nowhere_afterwards(
    server: MlflowServer,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Train, evaluate, export, review, deliver; then the server is gone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{MARKER}@127.0.0.1:{server.port}")
    monkeypatch.setenv("RAY_AUTH_TOKEN", f"{MARKER}{MARKER}")
    monkeypatch.chdir(tmp_path)
    recipe = small_recipe(image_folder, tmp_path / "out", scaling={"num_workers": 0}, views__size=32)
    recipe["student"] = {"model": "test_resnet"}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    caplog.set_level(logging.INFO)
    run = str(tmp_path / "out" / "run")
    assert main(["train", "recipe.yaml"]) == 0
    assert main(["evaluate", run]) == 0
    assert main(["export", run, "-o", "exported", "--images", "4"]) == 0
    assert main(["review", "stillhouse", "-o", "page.html"]) == 0
    assert main(["ui"]) == 0
    recipe_as_run = Path(run, "recipe.yaml").read_text()
    assert Path(run, "mlflow_store").read_text() == f"http://127.0.0.1:{server.port}\n"
    assert leaks(tmp_path, server.folder) == []  # the run's folder is removed below
    server.stop()
    shutil.rmtree(run)
    assert main(["train", "recipe.yaml"]) == 2  # the store does not answer
    assert main(["review", "stillhouse", "-o", "page.html"]) == 2
    said = capfd.readouterr()
    assert "does not answer" in said.err
    assert MARKER not in said.out + said.err + caplog.text
    assert leaks(tmp_path, server.folder) == []
    assert load_recipe(tmp_path / "recipe.yaml").tracking.uri is None
    card = (tmp_path / "exported" / "README.md").read_text()
    assert f"127.0.0.1:{server.port}" not in card + recipe_as_run


def test_a_journal_of_fields_has_none(tmp_path: Path) -> None:
    config = parse(with_secrets(tmp_path, tmp_path))
    held = {key for key, value in flat_fields(config.model_dump(mode="json")).items() if has_credentials(str(value))}
    assert held == {"data.root", "tracking.uri", "checkpoint.storage", "cache.dir", "about.data"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_marker_is_in_nothing_that_ray_writes(
    server: MlflowServer, image_folder: Path, tmp_path: Path, worker_executable: str
) -> None:
    """Its logs of workers, events and jobs, and Tune's files of trials: of a sweep, whose runs have workers."""
    server.start()
    ray_folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray puts sockets below it
    uri = f"http://me:{MARKER}@127.0.0.1:{server.port}"
    env = {"MLFLOW_TRACKING_URI": uri, "RAY_TMPDIR": str(ray_folder), "RAY_ADDRESS": None}
    recipe = small_recipe(image_folder, tmp_path / "out", data__held_out=0.2, train__epochs=1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "space.yaml").write_text("name: lrs\nspace: {optimizer.lr: [0.05]}\n")
    try:
        words = ["sweep", "recipe.yaml", "--space", "space.yaml"]
        command = Command(words, tmp_path / "output", worker_executable, env, tmp_path)
        assert command.wait() == 0, command.said
        assert len(list(ray_folder.rglob("worker-*"))) > 4, "the workers' logs are elsewhere"
        assert leaks(tmp_path, server.folder, ray_folder) == []
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
