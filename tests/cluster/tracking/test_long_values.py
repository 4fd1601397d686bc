"""Values of a recipe that are longer than what MLflow takes."""

import mlflow

from cluster.recipe.reading import parse
from cluster.tracking.fields import PARAM_LENGTH, param_text
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.tracking.run import open_run
from ops.history import Run, grouped


def test_a_value_that_fits_is_written_as_it_is():
    assert param_text(4.0) == "4.0"
    assert param_text("x" * PARAM_LENGTH) == "x" * PARAM_LENGTH


def test_recipes_that_differ_in_what_is_cut_are_two(recipe, store):
    """They were taken for one, and the later run for a repetition of the earlier one."""
    runs = []
    for number, last in enumerate([199, 199, 7]):
        args = {"widths": [*range(199), last]}
        config = parse(
            recipe(
                name=f"long{number}", seed=number, student={"model": "cifar_resnet8", "args": args}, tracking__uri=store
            )
        )
        client = mlflow.MlflowClient(tracking_uri(config))
        run_id = open_run(config, command="", tags={})
        client.set_terminated(run_id)
        runs.append(Run.of(client.get_run(run_id)))
    texts = [run.recipe["student.args.widths"] for run in runs]
    assert [len(text) for text in texts] == [PARAM_LENGTH] * 3
    assert texts[0].startswith("[0, 1, 2, ")
    assert [len(group.runs) for group in grouped(runs)] == [2, 1]
