"""Nested plain values: dotted keys, differences in their order, and a digest that stays as it is."""

from __future__ import annotations

from pipelines.nested import differences, digest_of, flat, in_short

DIGEST = "a8d71f64d3dc772b9eb4e657b383397a3aadf01d32947e3bc05925eaf48e41bf"  # of the digest's text, by sha256sum


def test_a_list_is_one_value():
    tree = {"a": {"b": 1, "c": {}}, "sizes": (1, 2), "terms": [{"term": "kd"}]}
    assert flat(tree) == {"a.b": 1, "sizes": [1, 2], "terms": [{"term": "kd"}]}


def test_what_says_most_comes_first():
    theirs = {"versions": {"torch": "1"}, "data": {"fingerprint": "f" * 64, "size": 8}, "same": 0}
    ours = {"versions": {"torch": "2"}, "data": {"fingerprint": "0" * 64, "size": 9}, "same": 0}
    assert [key for key, *_ in differences(theirs, ours)] == ["data.size", "versions.torch", "data.fingerprint"]
    assert differences({"a": 1}, {}) == [("a", 1, None)]
    assert (in_short("f" * 64), in_short("short")) == ("ffffffffffffffff...", "'short'")


def test_digests_are_as_they_were():
    """Caches that exist are found by them."""
    assert digest_of({"b": [1, None], "a": "x"}) == DIGEST
