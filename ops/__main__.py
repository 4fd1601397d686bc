"""`python -m ops <command>`: the one entry. Parses and delegates, nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from ops.command_line.parser import build_parser
from ops.leaving import run_and_leave

REFUSED, FAILED, FAULT, INTERRUPTED, TERMINATED = 2, 1, 70, 130, 143  # exit statuses; 70 is EX_SOFTWARE


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status.

    0 done, 2 refused, 1 failed on the way, 70 our own fault, 130 Ctrl-C, 143 SIGTERM.
    """
    args = build_parser().parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch and Ray.
    from cluster.interruption import Terminated, ending_on_signals, in_words
    from kdcore.errors import Refused, RunFailed
    from ops.console import complain, print_traceback

    remark = f"; {args.when_interrupted}" if hasattr(args, "when_interrupted") else ""
    try:
        if getattr(args, "plugin", None) and not hasattr(args, "overrides"):  # else its recipe names them
            from cluster.recipe.plugins import import_plugins

            import_plugins(args.plugin)
        with ending_on_signals(remark):
            return args.function(args)
    except (Refused, RunFailed) as error:
        if args.debug:
            raise
        complain(str(error))
        return REFUSED if isinstance(error, Refused) else FAILED
    except (KeyboardInterrupt, Terminated) as error:
        complain(f"{in_words(error)}{remark}")
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else TERMINATED
    except Exception as error:
        print_traceback()
        complain(f"{type(error).__name__} is a bug in stillhouse, not in your request; please report the lines above")
        return FAULT


if __name__ == "__main__":
    run_and_leave(main)
