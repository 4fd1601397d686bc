"""What may be typed about a finished student: `predict` and `benchmark`; `ops.commands` has the other commands."""

from __future__ import annotations

from ops.parser import Parser, add_overrides, calls, command


@command(
    "look",
    help="what a student sees in a photograph, or in a folder of them",
    description="Names the likeliest classes of photographs with their probabilities, through the very pixels of the "
    "run's validation.",
)
def predict(parser: Parser) -> None:
    """Add the arguments of `predict`."""
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run, or a file of its weights")
    parser.add_argument("photos", metavar="PHOTO|FOLDER", help="an image, or a folder whose images are looked at")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes a photograph (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="also write all of it as JSON")
    parser.add_argument("--picture", metavar="FILE", help="also save the photographs with their class, as PNG or JPEG")
    add_overrides(parser, "such as data.root=FOLDER")
    parser.set_defaults(function=calls("ops.predict:predict", "run", "photos", "top", "output", "picture", "overrides"))


@command(
    "look",
    help="how long student and teacher take here: latency and images/s",
    description="Measures a run's student, and its teacher where its weights are there, in torch, compiled by torch, "
    "and in ONNX Runtime, with the threads of one worker; all take turns. The numbers are kept in the run's folder, "
    "and go into the model card of an export.",
)
def benchmark(parser: Parser) -> None:
    """Add the arguments of `benchmark`."""
    from ops.latency import FORMS

    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 64], metavar="N", help="images of a call (default: 1 64)"
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, help="(default: all)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default: %(default)s)")
    add_overrides(parser, "such as scaling.cpus_per_worker=4 or scaling.use_gpu=false")
    parser.set_defaults(function=calls("ops.latency:benchmark", "run", "batches", "forms", "seconds", "overrides"))
