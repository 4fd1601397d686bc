"""What may be typed about a finished student; `ops.commands` has the other commands."""

from __future__ import annotations

from ops.limits import FORMS, MAX_LOSS, PRECISIONS
from ops.parser import SUBJECT, Parser, add_overrides, calls, command


@command(
    "look",
    help="how a student answers: accuracy, closeness to its teacher, calibration, classes",
    description="Evaluates on every image once: top-1, top-5, agreement with the teacher, KL, calibration, a table by "
    "class, the worst confusions, and the alignment (CKA) of the tapped layers. RUN is a run's folder, a file of "
    "weights, or a recipe (its teacher is evaluated). Results go beside it and onto the run's page in MLflow.",
)
def evaluate(parser: Parser) -> None:
    from pipelines.data.variants import VARIANTS

    parser.add_argument("run", metavar="RUN", help="outputs/my-run, weights.safetensors, or a recipe")
    parser.add_argument("--recipe", metavar="RECIPE", help="how a file of weights is built, where none is beside it")
    parser.add_argument("--data", metavar="FOLDER", help="other images: FOLDER/<class>/ (default: the recipe's)")
    parser.add_argument("--variant", choices=VARIANTS, help="FOLDER is this test set of ImageNet")
    add_overrides(parser, "such as scaling.num_workers=0")
    parser.set_defaults(
        function=calls("ops.evaluate:evaluate", "run", "recipe", "data", "variant", "overrides", require=SUBJECT)
    )


@command(
    "look",
    help="what a student sees in a photograph, or in a folder of them",
    description="Names the likeliest classes of photographs with their probabilities, through the very pixels of the "
    "run's validation.",
)
def predict(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run, or a file of its weights")
    parser.add_argument("photos", metavar="PHOTO|FOLDER", help="an image, or a folder whose images are looked at")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes a photograph (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="also write all of it as JSON")
    parser.add_argument("--picture", metavar="FILE", help="also save the photographs with their class, as PNG or JPEG")
    add_overrides(parser, "such as data.root=FOLDER")
    parser.set_defaults(
        function=calls("ops.predict:predict", "run", "photos", "top", "output", "picture", "overrides", require=SUBJECT)
    )


@command(
    "look",
    help="what the frozen features of student and teacher know of the classes",
    description="Judges a run's student, and its teacher where that answers online without a head, by what their "
    "classifiers read: nearest neighbours and a linear probe, both from a sample of the training images, and the share "
    "of nearest neighbours that both networks see alike.",
)
def probe(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run, or a file of weights in one")
    add_overrides(parser, "such as data.root=FOLDER")
    parser.set_defaults(function=calls("ops.probe:probe", "run", "overrides", require=SUBJECT))


@command(
    "look",
    help="how long student and teacher take here: latency and images/s",
    description="Measures a run's student, and its teacher where its weights are there, in torch, compiled by torch, "
    "and in ONNX Runtime, with the threads of one worker; all take turns. The numbers are kept in the run's folder, "
    "and go into the model card of an export.",
)
def benchmark(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 64], metavar="N", help="images of a call (default: 1 64)"
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, help="(default: all)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default: %(default)s)")
    add_overrides(parser, "such as scaling.cpus_per_worker=4 or scaling.use_gpu=false")
    parser.set_defaults(
        function=calls("ops.latency:benchmark", "run", "batches", "forms", "seconds", "overrides", require=SUBJECT)
    )


@command(
    "keep",
    help="a run's student as files for timm, torch and ONNX, with a model card",
    description="Writes the student as safetensors (timm), torch.export and ONNX, checks each on validation images "
    "against the trained network, writes a model card, and registers the model in MLflow.",
)
def export(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--images", type=int, default=256, metavar="N", help="for the checks (default: %(default)s)")
    parser.add_argument("--name", help="in the registry (default: the student's and the data's)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        default=[],
        help="also as model.fp16.onnx, or model.int8.onnx calibrated on training images, measured on all of validation",
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        default=MAX_LOSS,
        metavar="SHARE",
        help="of top-1; a smaller file that loses more is refused (default: %(default)s)",
    )
    add_overrides(parser, "such as data.root=FOLDER")
    names = ("run", "output", "images", "name", "precisions", "max_loss")
    parser.set_defaults(function=calls("ops.export:export", *names, "overrides", require=SUBJECT))


@command(
    "keep",
    help="what an exported network was made of, back to the first teacher; verified",
    description="Prints the chain teacher, cache, run, export behind an exported network, and further back where its "
    "teacher was an export itself. Links whose files are here are computed anew and compared, and so are signatures.",
)
def lineage(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", help="an export, or a cache")
    parser.add_argument(
        "--trust", nargs="+", default=[], metavar="FILE", help="public keys: refuse what none of them has signed"
    )
    parser.add_argument("--thorough", action="store_true", help="also read every shard of the caches that are here")
    parser.set_defaults(function=calls("ops.lineage:lineage", "folder", "trust", "thorough"))
