"""Errors meant for a person: one base, one line."""

import pytest

from edsr import errors

KINDS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.EDSRError)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_is_one_line_that_steers_no_terminal(kind):
    hostile = "a\nb\r\x1b[31m\x07 \x9b2J\u2028\u2029\x7f\x00\udcff ÿ 画像.png"
    error = kind(hostile)
    assert isinstance(error, errors.EDSRError)
    assert str(error) == r"a\nb\r\x1b[31m\x07 \x9b2J\u2028\u2029\x7f\x00\xff ÿ 画像.png"
    assert str(error).encode() and str(error).splitlines() == [str(error)]
