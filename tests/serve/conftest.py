"""One served model for all tests of a session that need a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Server, serving, wait_until

# Room for thoughts that last seconds, so that a test can leave in their middle.
ROOM = 8192


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose tokens are bytes, saved: any text can be asked, every byte can come back."""
    from tinymodel import byte_tokenizer, tiny_llama
    from tutelage.students.pretrained import Student, save_student
    from tutelage.students.template import Template

    tokenizer = byte_tokenizer()
    student = Student(tiny_llama(len(tokenizer), room=ROOM), tokenizer, Template(), "bytes")
    return save_student(student, tmp_path_factory.mktemp("served") / "bytes")


@pytest.fixture(scope="session")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`tutelage serve` with its defaults. Tests that use it carry `xdist_group("server")`: one for all."""
    with serving(model_folder, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


@pytest.fixture
def survives(server: Server) -> Iterator[None]:
    """The test ends with a good request, and with no row left behind."""
    yield
    wait_until(lambda: server.rows() == 0, 30, "every row is free again")
    server.serves()
