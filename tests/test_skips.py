"""The rule about skipped tests, tried on a small project."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TEST = """
import pytest
@pytest.mark.skip(reason="no moon tonight")
def test_moon(): pass
@pytest.mark.parametrize("x", [1])
@pytest.mark.xfail(reason="broken")
def test_broken(x): assert False
def test_fine(): pass
"""


def outcome(folder: Path, allowed: str) -> tuple[int, str]:
    shutil.copy(HERE / "conftest.py", folder)
    (folder / "allowed_skips.txt").write_text(allowed)
    (folder / "test_it.py").write_text(TEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_skip_or_expected_failure_without_an_entry_fails_the_run(tmp_path: Path) -> None:
    code, text = outcome(tmp_path, "# nothing\n")
    assert code == 1
    assert "not in tests/allowed_skips.txt: test_it.py::test_moon (Skipped: no moon tonight)" in text
    assert "test_it.py::test_broken[1] (broken)" in text


@pytest.mark.slow
def test_an_entry_with_a_reason_allows_it(tmp_path: Path) -> None:
    listed = "test_it.py::test_moon | the moon is not always there\ntest_it.py::test_broken* | known\n"
    assert outcome(tmp_path, listed)[0] == 0


def test_an_entry_without_a_reason_is_refused(tmp_path: Path) -> None:
    assert outcome(tmp_path, "test_it.py::test_moon\n")[0] != 0
