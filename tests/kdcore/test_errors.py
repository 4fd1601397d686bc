"""What an error says, in one line."""

from __future__ import annotations

import pytest

from kdcore.errors import did_you_mean, one_line, shortened, typed_line


@pytest.mark.parametrize(
    ("error", "line", "typed"),
    [
        (ValueError("two\n  lines "), "two lines", "ValueError: two lines"),
        (ValueError("x" * 300), "x" * 200, "ValueError: " + "x" * 200),
        (EOFError(), "EOFError", "EOFError"),
        (EOFError("\n"), "EOFError", "EOFError"),
    ],
    ids=["lines", "long", "empty", "blank"],
)
def test_an_error_in_one_line(error, line, typed):
    assert (one_line(error), typed_line(error)) == (line, typed)


def test_what_an_unknown_name_may_mean():
    known = ["cosine", "constant", "onecycle"]
    assert did_you_mean("cosin", known, "give one") == "did you mean cosine?"
    assert did_you_mean("conein", known, "give one", n=1, cutoff=0.1).count(",") == 0
    assert did_you_mean("linear", known, "give one") == "give one"


def test_a_message_is_cut_where_the_caller_says():
    error = OSError("x" * 300)
    assert one_line(error, 100) == "x" * 100
    assert typed_line(error, length=None) == "OSError: " + "x" * 300


def test_half_a_credential_is_not_left_by_a_cut(monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", "hf_abcdefghijklmnop")
    message = "x" * 190 + " hf_abcdefghijklmnop " + "y" * 190
    for said in (one_line(OSError(message)), typed_line(OSError(message)), shortened(message, 2 * 195)):
        assert "hf_" not in said
    assert "secret" not in one_line(OSError("z" * 180 + " s3://key:secret-of-many-letters@bucket/images"))
