"""What the benchmarks of sweeps share: the digits, a ResNet-20 as their teacher, the demo's small student."""

from __future__ import annotations

from pathlib import Path

from cluster.recipe.config import RunConfig
from cluster.recipe.paths import absolute
from cluster.recipe.reading import load_recipe
from cluster.training.launch import launch
from ops.demo.digits import write_digits

DEMO = Path(__file__).parents[1] / "recipes/demo"
EPOCHS = 4  # of the teacher


def student_recipe(output: Path, *changes: str) -> RunConfig:
    """Return the recipe of the demo's student with a tenth of the training images held out.

    Its teacher is trained here if necessary.
    """
    root = write_digits(output / "digits")
    shared = [f"data.root={root.absolute()}", f"output_dir={output.absolute()}", "scaling.num_workers=0"]
    shared += ["data.loader=resident", "tracking.system_metrics=false", "tracking.every_steps=50"]
    teacher = absolute(
        load_recipe(
            DEMO / "teacher.yaml",
            [*shared, "student.model=cifar_resnet20", f"train.epochs={EPOCHS}"],
        ),
        Path.cwd(),
    )
    launch(teacher)
    theirs = [f"teacher.model={teacher.student.model}", f"teacher.checkpoint={teacher.run_dir}/student.safetensors"]
    return absolute(load_recipe(DEMO / "distilled.yaml", [*shared, "data.held_out=0.1", *theirs, *changes]), Path.cwd())
