"""What importing `cluster` sets for the libraries underneath."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FAULTS = """
import resource
import cluster, torch

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(64, 1 << 18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(), reason="huge pages are not asked for here"
)
def test_large_tensors_lie_in_huge_pages():
    """A tensor of 64 MiB in a fresh process: 16,384 faults in pages of 4 KiB."""
    inherited = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=inherited, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4_000
