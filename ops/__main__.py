"""`python -m ops <command>`: the one entry. Parses and delegates, nothing else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ops.parser import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch and Ray.
    from cluster.failures import RunFailed
    from ops.console import complain

    try:
        return args.function(args)
    except ValueError as error:
        if args.debug:
            raise
        complain(str(error))
        return 2
    except RunFailed as error:
        if args.debug:
            raise
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain("interrupted; the same command continues from the last checkpoint")
        return 130


if __name__ == "__main__":
    sys.exit(main())
