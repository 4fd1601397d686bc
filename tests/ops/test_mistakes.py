"""What a person gets wrong on the first day: the exit status, the one sentence, and that it comes at once.

Seconds are of this process's own work, with the libraries loaded. Nothing here starts Ray.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import timm
import torch
import yaml

import kdcore.networks  # noqa: F401  registers the CIFAR networks with timm
from ops.__main__ import main
from tests.conftest import small_recipe, write_image_folder

ROOT = Path(__file__).parents[2]
AT_ONCE_SECONDS = 3.0
KD = "method=[{term: ce, weight: 1}, {term: kd, weight: 1, temperature: 4}]"
FEATURES = "method=[{term: feature_mse, weight: 1, pairs: [{student: layer9, teacher: layer2}]}]"
TEACHER = ["teacher.model=cifar_resnet8", "teacher.random=true"]

# (what is typed, what is said). R is a recipe that works, P its images; all lies in the working directory.
MISTAKES = [
    ("train nowhere.yaml", "nowhere.yaml: no such recipe"),
    ("train kdd", "kdd: no such recipe; did you mean kd?"),
    (
        "train nothere",
        "nothere: no such recipe; give the name of one, or a file that ends in .yaml; `python -m ops recipes`",
    ),
    ("train R train.epoch=3", "unknown key 'train.epoch'; did you mean epochs"),
    ("train R epochs=3", "unknown key 'epochs'; did you mean train.epochs?"),
    (f"train R {KD} temperature=3", "unknown key 'temperature'; did you mean method.1.temperature?"),
    (f"train R {KD} kd.temperature=3", "unknown key 'kd'; did you mean"),
    (f"train R {KD} method.0.temperature=3", "unknown key 'method.0.temperature'; did you mean method.1.temperature?"),
    ("train R warmup_epochs=3", "unknown key 'warmup_epochs'; did you mean schedule.warmup_epochs"),
    ("train R train.lr=0.1", "unknown key 'train.lr'; did you mean optimizer.lr?"),
    ("train R train.epochs", "override 'train.epochs': write key=value, such as train.epochs=5"),
    ("train R train.epochs=many", "train.epochs: Input should be a valid integer"),
    ("train R method.0.weight.x=3", "method.0.weight.x: 'weight' is a value, it has no keys below it"),
    ("train R method.0.term=kdd", "method.0: unknown term 'kdd'; did you mean kd"),
    ("train R student.model=cifar_resnet7", "unknown model 'cifar_resnet7'; did you mean cifar_resnet"),
    ("train R optimizer.opt=sdg", "unknown optimiser 'sdg'; did you mean sgd"),
    (
        "train R data.root=nowhere",
        "nowhere: no such folder; set data.root to the folder that holds <split>/<class>/<images>",
    ),
    ("train R data.root=P/train", "has no split 'train', but the folder around it has; give data.root="),
    ("train R data.train_split=trian", "has no split 'trian'; it holds train, val: name one of them, or create"),
    ("train R train.batch_size=64", "train.batch_size 64 is more than the 39 training images"),
    ("show R train.batch_size=64", "train.batch_size 64 is more than the 39 training images"),
    ("train R train.batch_size=10", "train.batch_size 10 is not a multiple of train.micro_batch 4; take 8"),
    ("train R student.checkpoint=gone.pt", "gone.pt: no such file, named by the model 'cifar_resnet8' of the recipe"),
    ("train R student.checkpoint=21.pt", "has 21 outputs, for other classes than the data's: give student.new_head"),
    ("train R student.new_head=true", "new_head is for weights from a file, and there is none; give checkpoint=FILE"),
    (f"train R {KD}", "kd needs a teacher; add a 'teacher:' section with a model"),
    (
        f"train R {KD} teacher.model=cifar_resnet8",
        "has no weights, so there is nothing to learn from it; give teacher.",
    ),
    (
        f"train R {KD} teacher.model=cifar_resnet8 teacher.args.widths=[4,4,8,16] teacher.checkpoint=21.pt",
        "for other classes than the data's: a teacher has to know the data's classes: fine-tune it on them first",
    ),
    (
        f"train R {KD} teacher.model=cifar_resnet8 teacher.checkpoint=21.pt teacher.new_head=true",
        "with new_head it answers at random; a teacher has to know the data's classes: fine-tune it",
    ),
    (f"train R {FEATURES} {' '.join(TEACHER)}", "student cifar_resnet8 has no tap 'layer9'; did you mean layer"),
    ("train R tracking.uri=localhost:5000", "'localhost:5000', does not say how it is reached; write http://localhost"),
    (
        f"cache plan R {KD} {' '.join(TEACHER)}",
        "the recipe has no cache; add a 'cache:' section, such as {dir: outputs/cache}",
    ),
    ("train used", "holds a run of another recipe (train.epochs: 2 there, 5 now); choose another name=..."),
    ("show R data.root=nowhere", "nowhere: no such folder; set data.root to the folder that holds"),
    (
        "evaluate outputs/gone",
        "outputs/gone: there is no such run, file of weights, or recipe; give the folder of a run",
    ),
    ("evaluate out/usde", "out/usde: there is no such run, file of weights, or recipe; did you mean out/used?"),
    ("export outputs/gone -o files", "outputs/gone: there is no such run"),
    ("predict outputs/gone photo.jpg", "outputs/gone: there is no such run"),
    ("benchmark outputs/gone", "outputs/gone: there is no such run"),
    ("sweep R --space gone.yaml", "--space gone.yaml: no such file; `python -m ops fields sweep` shows"),
    ("sweep R --space typo.yaml --plan", "space: a recipe has no field 'temprature'; did you mean temperature?"),
    ("review small --store nowhere", "nowhere has no mlflow.db; give the folder that runs were written to"),
    ("ui --store nowhere", "nowhere has no mlflow.db; give the folder that runs were written to"),
    ("cache info nowhere", "the cache nowhere is not finished, or is not a cache"),
    ("fields temprature", "temprature: no section, term or field is called that; did you mean temperature"),
    ("demo --teacher resnet18", "--teacher names a network for your own images; give --data FOLDER too"),
    ("demo --data P --teacher-weights 21.pt", "21.pt: name the network they belong to: --teacher NAME"),
    ("predict out/used P --output .", "--output: . is a folder; give the name of a file in it, such as NAME"),
    ("predict out/used P --output s3://b/x.json", "--output: "),
    ("predict out/used P --picture P", "--picture: P is a folder; give the name of a file in it, such as P/NAME"),
    ("predict out/used P --output 21.pt/x", "21.pt is a file, not a folder; give another place"),
    ("review small --output .", "--output: . is a folder; give the name of a file in it"),
    ("show R --picture out/x.png", "--picture: out/x.png is a folder; give the name of a file in it"),
    ("keys .", "keys: . is a folder; give the name of a file in it"),
    ("keys P", "keys: P is a folder; give the name of a file in it"),
    ("layers R --output 21.pt", "--output: 21.pt is a file, not a folder; give another place"),
    ("export out/used -o 21.pt", "--output: 21.pt is a file, not a folder; give another place"),
    (
        "export out/used -o out/used",
        "--output: out/used is a run's folder, as it has a recipe.yaml; give another",
    ),
    ("data show P --index 21.pt", "index: the folder 21.pt cannot be made (File exists); give a place that can be wr"),
    ("demo --output 21.pt", "--output: 21.pt is a file, not a folder; give another place"),
    ("demo P --output out/demo", "override 'P': write key=value, such as train.epochs=5"),
    ("demo --data P --student resnet81", "unknown model 'resnet81'; did you mean resnet18"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory: images, a recipe, a run of it, a space with a mistake, and weights of 21 classes."""
    folder = tmp_path_factory.mktemp("first day")
    write_image_folder(folder / "P")
    torch.manual_seed(0)
    network = timm.create_model("cifar_resnet8", num_classes=21, widths=(4, 4, 8, 16))
    torch.save(network.state_dict(), folder / "21.pt")
    recipe = small_recipe(folder / "P", folder / "out", data__held_out=0.2)
    (folder / "R.yaml").write_text(yaml.safe_dump(recipe))
    used = recipe | {"name": "used"}
    (folder / "used.yaml").write_text(yaml.safe_dump(used | {"train": recipe["train"] | {"epochs": 5}}))
    (folder / "out" / "used").mkdir(parents=True)
    (folder / "out" / "used" / "student.safetensors").touch()
    (folder / "out" / "x.png").mkdir()
    (folder / "out" / "used" / "recipe.yaml").write_text(yaml.safe_dump(used))
    (folder / "typo.yaml").write_text("name: typo\nspace: {temprature: [1, 2]}\n")
    return folder


def words(typed: str) -> list[str]:
    """The words of a command: a value in brackets is one, R and used are files."""
    parts, depth, word = [], 0, ""
    for letter in typed + " ":
        depth += (letter in "[{") - (letter in "]}")
        if letter == " " and depth == 0:
            parts.append({"R": "R.yaml", "used": "used.yaml"}.get(word, word))
            word = ""
        else:
            word += letter
    return parts


@pytest.mark.parametrize(("typed", "said"), MISTAKES, ids=[typed[:50] for typed, _ in MISTAKES])
def test_a_mistake_is_refused_at_once_in_one_sentence(typed, said, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    started = time.process_time()
    status = main(words(typed))
    seconds = time.process_time() - started
    shown = capsys.readouterr()
    assert status == 2, shown
    lines = shown.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert said in lines[0]
    assert "measuring" not in shown.out
    assert not ray.is_initialized()
    assert seconds < AT_ONCE_SECONDS


def test_a_gpu_that_is_absent(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["train", "R.yaml", "scaling.use_gpu=true"]) == 2
    assert "scaling.use_gpu is true, but PyTorch sees no GPU on this machine" in capsys.readouterr().err
    assert not ray.is_initialized()


# What each needs last, in an order in which none needs less than the one before.
NOT_WAITED_FOR = {
    "train gone.yaml": ("torch", "ray", "mlflow"),
    "cache plan kdd": ("torch", "ray", "mlflow"),
    "sweep gone.yaml --space space.yaml": ("torch", "ray", "mlflow"),
    **{f"{name} outputs/gone": ("torch", "ray", "mlflow") for name in ("evaluate", "benchmark", "probe")},
    "predict outputs/gone photo.jpg": ("torch", "ray", "mlflow"),
    "export outputs/gone -o files": ("torch", "ray", "mlflow"),
    "show gone.yaml": ("torch", "timm", "ray"),
    "train R data.root=nowhere": ("timm", "torchvision", "ray", "mlflow"),
    "train R student.model=resnet81": ("torchvision", "ray", "mlflow"),
    "train R student.checkpoint=21.pt": ("ray", "mlflow"),
}


def test_what_a_refusal_does_not_wait_for(place):
    """In a process of their own: libraries whose import takes seconds are not imported before what needs none."""
    code = (
        "import json, sys; from ops.__main__ import main\n"
        "for words, absent in json.loads(sys.argv[1]):\n"
        "    print(main(words), [name for name in absent if name in sys.modules])"
    )
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(place), "OMP_NUM_THREADS": "1"}
    asked = json.dumps([(words(typed), absent) for typed, absent in NOT_WAITED_FOR.items()])
    command = [sys.executable, "-c", code, asked]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=True)
    found = dict(zip(NOT_WAITED_FOR, done.stdout.splitlines(), strict=True))
    assert found == dict.fromkeys(NOT_WAITED_FOR, "2 []"), done.stderr
