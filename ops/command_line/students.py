"""The commands for a finished student; `ops.command_line.commands` has the other commands."""

from __future__ import annotations

from ops.command_line.limits import FORMS, MAX_LOSS, PRECISIONS
from ops.command_line.parser import PREDICTED, SUBJECT, Parser, add_overrides, calls, command


@command(
    "look",
    help="evaluate a student: accuracy, agreement with its teacher, calibration, classes",
    description="Evaluates on every image once: top-1, top-5, agreement with the teacher, KL, calibration, a table by "
    "class, the worst confusions, and the alignment (CKA) of the tapped layers. RUN is a run's folder, a file of "
    "weights, or a recipe (its teacher is evaluated). Results go next to it and onto the run's page in MLflow.",
)
def evaluate(parser: Parser) -> None:
    from pipelines.data.variants import VARIANTS

    parser.add_place("run", metavar="RUN", help="a run's folder (outputs/my-run), a file of weights, or a recipe")
    parser.add_argument(
        "--recipe", metavar="RECIPE", help="the recipe of a file of weights that has no recipe.yaml next to it"
    )
    parser.add_place(
        "--data", metavar="FOLDER", help="evaluate on these images, FOLDER/<class>/ (default: the recipe's)"
    )
    parser.add_argument("--variant", choices=VARIANTS, help="treat --data FOLDER as this ImageNet test set")
    add_overrides(parser, "recipe fields to override, such as scaling.num_workers=0")
    parser.set_defaults(function=calls("ops.evaluation.evaluate:evaluate", require=SUBJECT))


@command(
    "look",
    help="classify a photograph, or a folder of them, with a student",
    description="Prints the most likely classes of photographs with their probabilities, preprocessed exactly as for "
    "the run's validation.",
)
def predict(parser: Parser) -> None:
    parser.add_place("run", metavar="RUN", help="the folder of a finished run, or a file of its weights")
    parser.add_place("photos", metavar="PHOTO|FOLDER", help="an image, or a folder of images")
    parser.add_argument(
        "--top", type=int, default=3, metavar="N", help="classes to print per photograph (default: %(default)s)"
    )
    parser.add_place("--output", metavar="FILE", help="also write all of it as JSON")
    parser.add_place("--picture", metavar="FILE", help="also save the photographs with their class, as PNG or JPEG")
    add_overrides(parser, "recipe fields to override, such as data.root=FOLDER")
    parser.set_defaults(function=calls("ops.evaluation.predict:predict", require=PREDICTED))


@command(
    "look",
    help="rate the frozen features of student and teacher by kNN and a linear probe",
    description="Rates the features of a run's student, and of its teacher if that is online and has no head: nearest "
    "neighbours and a linear probe, both from a sample of the training images, and the share of nearest neighbours "
    "that both networks have in common.",
)
def probe(parser: Parser) -> None:
    parser.add_place("run", metavar="RUN", help="the folder of a finished run, or a weights file inside one")
    add_overrides(parser, "recipe fields to override, such as data.root=FOLDER")
    parser.set_defaults(function=calls("ops.evaluation.probe:probe", require=SUBJECT))


@command(
    "look",
    help="measure latency and images/s of student and teacher on this machine",
    description="Measures a run's student, and its teacher if its weights are available, in torch, compiled by torch, "
    "and in ONNX Runtime, with the threads of one worker; measurements are interleaved. The numbers are kept in the "
    "run's folder and go into the model card of an export.",
)
def benchmark(parser: Parser) -> None:
    parser.add_place("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 64], metavar="N", help="batch sizes (default: 1 64)"
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, help="runtimes to measure (default: all)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement (default: %(default)s)")
    add_overrides(parser, "recipe fields to override, such as scaling.cpus_per_worker=4")
    parser.set_defaults(function=calls("ops.export.latency:benchmark", require=SUBJECT))


@command(
    "keep",
    help="export a run's student for timm, torch and ONNX, with a model card",
    description="Writes the student as safetensors (timm), torch.export and ONNX, checks each on validation images "
    "against the trained network, writes a model card, and registers the model in MLflow.",
)
def export(parser: Parser) -> None:
    parser.add_place("run", metavar="RUN", help="the folder of a finished run")
    parser.add_place("-o", "--output", required=True, metavar="DIR", help="where the files go")
    parser.add_argument(
        "--images",
        dest="num_images",
        type=int,
        default=256,
        metavar="N",
        help="validation images for the checks (default: %(default)s)",
    )
    parser.add_argument("--name", help="model name in MLflow's registry (default: from the student and the data)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        default=[],
        help="also write model.fp16.onnx, or model.int8.onnx (calibrated on training images), each measured on the "
        "whole validation set",
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        default=MAX_LOSS,
        metavar="SHARE",
        help="largest loss of top-1; a file of lower precision that loses more is refused (default: %(default)s)",
    )
    add_overrides(parser, "recipe fields to override, such as data.root=FOLDER")
    parser.set_defaults(function=calls("ops.export.write:export", require=SUBJECT))


@command(
    "keep",
    help="trace and verify an export, back to the first teacher",
    description="Prints the chain of teacher, cache and run behind an export, and further back if the teacher was an "
    "export itself. Fingerprints are recomputed and compared where the files are available; signatures are verified.",
)
def lineage(parser: Parser) -> None:
    parser.add_place("folder", metavar="DIR", help="an export, or a cache")
    parser.add_place(
        "--trust",
        nargs="+",
        default=[],
        metavar="FILE",
        help="public keys; refuse an export that none of them has signed",
    )
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="also read every shard of the caches that are available, and fetch the teachers' weights that have a URI",
    )
    parser.set_defaults(function=calls("ops.export.lineage:lineage"))
