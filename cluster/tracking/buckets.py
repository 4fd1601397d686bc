"""What goes wrong where MLflow keeps files in an S3 bucket, which it accesses with boto3, unlike our pyarrow.

boto3's errors are recognised by the names of their classes, since it need not be installed.
"""

from __future__ import annotations

from kdcore.errors import typed_line

UNREACHABLE_ERRORS = ("ConnectionError", "HTTPClientError")  # of botocore: the endpoint does not answer


def is_bucket_away(error: BaseException) -> bool:
    """Return whether an error of boto3 means that the bucket cannot be reached now."""
    kinds = (kind for kind in type(error).__mro__ if kind.__module__ == "botocore.exceptions")
    return any(kind.__name__ in UNREACHABLE_ERRORS for kind in kinds)


def bucket_problem(error: BaseException) -> str | None:
    """Return what is wrong with the bucket, and what to do, in one line; None for an error of another kind."""
    keeps = "it keeps files in a bucket of S3"
    if isinstance(error, ModuleNotFoundError) and error.name in ("boto3", "botocore"):
        return f"{keeps}, for which boto3 is missing; install stillhouse[s3] here and on every node"
    if type(error).__module__.partition(".")[0] in ("boto3", "botocore"):
        return (
            f"{keeps}, which refuses ({typed_line(error)}); set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "AWS_REGION and MLFLOW_S3_ENDPOINT_URL on every node as that store wants them"
        )
    return None
