"""What `pip install` adds to site-packages: the one name `stillhouse`, whose folder holds the packages.

Other distributions have packages called `ops` and `cluster`, so ours are installed in a folder of their own. Importing
`stillhouse` puts it first on the path: in this process, and by PYTHONPATH in those that it starts. In a checkout, whose
root is on the path, this does nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def _go_first() -> None:
    """Put the folder of the packages first on the path, if they are in it."""
    if (FOLDER / "kdcore").is_dir() and str(FOLDER) not in sys.path[:1]:
        sys.path.insert(0, str(FOLDER))
        places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
        if str(FOLDER) not in places:
            os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER), *places])


_go_first()


def main() -> None:
    """Run the command `stillhouse`, which is `python -m ops` in a checkout."""
    from ops.__main__ import main as run
    from ops.leaving import run_and_leave

    run_and_leave(run)
