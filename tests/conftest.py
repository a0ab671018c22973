"""What every test shares: one thread, a cache of its own, and settings that repeat exactly."""

from __future__ import annotations

import os
import shutil
import signal

# Read by OpenMP when torch is loaded. Tests run beside others and Ray starts more of them:
# with more threads than cores everything gets slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray would otherwise report usage to its makers, and look for a line it may not have.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Tests have folders of their own for their runs, and would play into this one.
os.environ.pop("COMMUNITY_HOME", None)

from pathlib import Path

import pytest
from hypothesis import settings

import community  # noqa: F401  (sets how OpenMP waits, before any test loads torch)

# No deadline, because a busy machine is not a failure; derandomised, so a run can be repeated.
settings.register_profile("community", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("community")

# A shell that starts the tests in the background lets them ignore Ctrl-C, and they what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="run GPU tests too")


@pytest.fixture(scope="session")
def gpu(request: pytest.FixtureRequest) -> str:
    """The device "cuda", where `--device cuda` asks for it."""
    if request.config.getoption("--device") != "cuda":
        pytest.skip("runs on a GPU, with --device cuda")
    if not pytest.importorskip("torch").cuda.is_available():
        pytest.fail("--device cuda, and torch finds no GPU")
    return "cuda"


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, `tiny`. Look, and change nothing."""
    import command  # here, because a GPU machine has torch for the kernels' tests and little else

    folder = tmp_path_factory.mktemp("played")
    done = command.community(folder, "run", command.write_recipe(folder, command.CROWD))
    assert (done.code, done.err) == (0, "")
    assert "report, plots and ledger are in" in done.out
    return folder


@pytest.fixture(scope="session")
def talked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run in which members talked. Look, and change nothing."""
    import command
    import talk

    home = tmp_path_factory.mktemp("talked")
    (home / "talk.toml").write_text(talk.RECIPE)
    done = command.community(home, "run", str(home / "talk.toml"))
    assert (done.code, done.err) == (0, "")
    return home / "runs" / "talk"


@pytest.fixture
def copied(talked: Path, tmp_path: Path) -> Path:
    """The folder of a copy of it, to be spoilt; `tmp_path` is its COMMUNITY_HOME."""
    return Path(shutil.copytree(talked, tmp_path / "runs" / "talk"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty COMMUNITY_CACHE."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("COMMUNITY_CACHE", str(folder))
    return folder
