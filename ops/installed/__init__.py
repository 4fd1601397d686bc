"""What `pip install` puts beside other distributions: the one name `stillhouse`, in whose folder the packages lie.

Other distributions have packages called `ops` and `cluster`. So ours are not installed next to them but within a folder
of their own, which stands before all else on the path once `stillhouse` is imported: in this process, and by PYTHONPATH
in those that it starts. In a checkout, whose root is on the path, this does nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def _go_first() -> None:
    """Put the folder of the packages before other places, if they are in it."""
    if (FOLDER / "kdcore").is_dir() and str(FOLDER) not in sys.path[:1]:
        sys.path.insert(0, str(FOLDER))
        places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
        if str(FOLDER) not in places:
            os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER), *places])


_go_first()


def main() -> None:
    """Run the command `stillhouse`, which is `python -m ops` of a checkout."""
    from ops.__main__ import main as run
    from ops.leaving import run_and_leave

    run_and_leave(run)
