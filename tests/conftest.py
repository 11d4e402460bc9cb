"""For all tests: no network, one thread, and no skip that `allowed_skips.txt` does not name. For those of the
pages: a real headless chromium; where there is none they skip and say so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Before any library reads them: tests must not reach a hub, and several run at the same time.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine is no defect of the code. (Where CI is set, hypothesis takes a profile without deadlines
# itself.)
if not os.environ.get("CI"):
    hypothesis.settings.register_profile("here", deadline=None)
    hypothesis.settings.load_profile("here")

ALLOWED = Path(__file__).with_name("allowed_skips.txt")
_skipped: dict[str, str] = {}


def allowed_skips(text: str) -> list[str]:
    """The patterns of the list. Every line must give a reason."""
    patterns = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            pattern, bar, reason = (part.strip() for part in line.partition("|"))
            if not (bar and reason):
                raise pytest.UsageError(f"{ALLOWED.name}:{number}: write it as: node id | reason")
            patterns.append(pattern.replace("[", "[[]"))
    return patterns


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped:
        reason = getattr(report, "wasxfail", "") or report.longrepr
        _skipped[report.nodeid] = str(reason[-1] if isinstance(reason, tuple) else reason)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


def _not_allowed() -> dict[str, str]:
    patterns = allowed_skips(ALLOWED.read_text(encoding="utf-8"))
    return {
        node: reason
        for node, reason in _skipped.items()
        if not any(fnmatchcase(node, pattern) for pattern in patterns)
    }


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput") and _not_allowed() and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for node, reason in _not_allowed().items():
        terminalreporter.write_line(f"skipped, but not in tests/{ALLOWED.name}: {node} ({reason})", red=True)


CLUSTER_KEY = "sk-of-the-cluster-0123456789"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Path]:
    """Two Ray nodes with one core each, started with a key in their environment; gives Ray's log folder.

    One for the whole session: Ray Data keeps references to the first cluster that a process has used. Tests
    that use it carry `xdist_group("ray")`."""
    from tutelage import engines

    before = dict(os.environ)
    os.environ.update(engines._RAY_SETTINGS, RAY_AUTH_MODE="disabled", CLUSTER_TEST_KEY=CLUSTER_KEY)
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = nodes.address
        yield Path(nodes.head_node.get_session_dir_path())
    finally:
        ray.shutdown()
        nodes.shutdown()
        os.environ.clear()
        os.environ.update(before)


_CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# Not for the whole run: while it is open an event loop runs in this thread, and later tests have their own.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import Error, sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium: install Debian's chromium package to run the tests of the page")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=_CHROMIUM_FLAGS)
        except Error as error:
            pytest.skip(f"no chromium: {program} does not start ({str(error).splitlines()[0]})")
        yield browser
        browser.close()
