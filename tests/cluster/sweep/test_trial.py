"""A run inside a trial: what it reports."""

import json

from cluster.images import open_data
from cluster.sweep.runs import config_of, task_of, validations_of
from cluster.sweep.trial import TrialTask, reporting_validations
from cluster.teachers.stored import TRAIN


def test_every_validation_is_told_once(recipes):
    """Also those that a killed attempt has written, and those that a new one takes back and writes again."""
    config = recipes(train__epochs=2, train__batch_size=6, train__micro_batch=6)  # 36 images: 6 steps an epoch
    config.run_dir.mkdir(parents=True)
    path, reported = config.run_dir / "metrics.jsonl", []

    def write(*steps: int) -> None:
        lines = [json.dumps({"step": step, "held_out/top1": step / 100, "val/top1": 0.5}) for step in steps]
        path.write_text("\n".join([*lines, json.dumps({"step": 13, "train/loss": 1.0}), '{"step": 12, "held']))

    write(6, 9)
    assert len(open_data(config)[TRAIN]) == 36
    with reporting_validations(validations_of(config), reported.append):
        write(6)
        write(6, 9, 12)
    assert reported == [
        {"epoch": step / 6, "step": step, "last": step == 12, "held_out/top1": step / 100, "val/top1": 0.5}
        for step in (6, 9, 12)
    ]


def test_tune_keeps_a_task_in_files_which_hold_no_password(recipes):
    """They hold all else, and still do once the run's process has put the password back."""
    uri = "https://user:marker-of-a-password@mlflow.example/"
    config = recipes(tracking__uri=uri)
    open_data(config)
    plain = json.loads(json.dumps(task_of("000-seed0", config, "sweep", {"sweep": "s"}).to_plain()))
    task = TrialTask.from_plain(plain)
    assert task == task_of("000-seed0", config, "sweep", {"sweep": "s"})
    assert config_of(task, {"tracking.uri": uri}) == config
    assert "marker-of-a-password" not in json.dumps(plain)
