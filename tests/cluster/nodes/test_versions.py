"""A node of other libraries is named with its versions, before anything is computed there."""

import socket

import pytest

from cluster.nodes import versions
from cluster.nodes.versions import node_versions, refuse_other_versions
from kdcore.errors import Refused


def test_the_same_environment():
    ours = node_versions()
    assert {"torch", "timm", "nvidia-dali-cuda130", "stillhouse"} <= ours.keys()
    assert not any("+" in version for version in ours.values()), "how a version was built does not count"
    assert not any("dali" in name for name in node_versions(with_dali=False))
    refuse_other_versions(ours)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"timm": "1.0.3"}, r"has other libraries than the driver: timm [\d.]+ \(driver: 1.0.3\); give every node"),
        ({"nvidia-dali-cuda120": "1.9"}, r"nvidia-dali-cuda120 is absent \(driver: 1.9\)"),
        ({"stillhouse": "9.0", "torch": "1.0"}, r"stillhouse [\d.]+ \(driver: 9.0\), torch [\d.]+ \(driver: 1.0\)"),
    ],
)
def test_another_version_or_none(change, said):
    """In one line, with the node's name."""
    with pytest.raises(Refused, match=said) as caught:
        refuse_other_versions({**change, "numpy": node_versions()["numpy"]})
    assert str(caught.value).startswith(f"the node {socket.gethostname()} ")
    assert "\n" not in str(caught.value)


def test_what_the_driver_lacks_does_not_count(monkeypatch):
    """A head that trains nothing may be without DALI."""
    theirs = node_versions(with_dali=False)
    monkeypatch.setattr(versions, "LIBRARIES", (*versions.LIBRARIES, "pydantic"))
    refuse_other_versions(theirs)
