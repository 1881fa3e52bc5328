"""What TensorFlow says on stderr is kept back, unless it fails."""

import os

import pytest

from models.quiet import stderr_on_failure


def test_all_is_kept_back_from_stderr(capfd):
    with stderr_on_failure():
        os.write(2, b"no GPU\n")
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "later\n"


def test_where_it_fails_it_is_told(capfd):
    with pytest.raises(ImportError, match="libmissing"), stderr_on_failure():
        os.write(2, b"cannot open libmissing\n")
        raise ImportError("libmissing")
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "cannot open libmissing\nlater\n"
