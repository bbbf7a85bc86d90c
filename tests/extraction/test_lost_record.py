"""A record that is lost after its file was published is written anew by whoever finds the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from featcache.cache.record import read_record, record_path
from featcache.errors import CacheMiss
from featcache.extraction.api import extract_splits
from featcache.extraction.make_file import EncodedCounts, FileMaker
from tests.support.cli_tools import arrow_in
from tests.support.extraction import Case, counted, one_thread, write_case

pytestmark = pytest.mark.bad_input


@pytest.fixture
def case(tiny: Callable[[str], Path], tmp_path: Path) -> Iterator[Case]:
    """A file whose record was lost."""
    case = write_case(tmp_path / "case", tiny("bert"))
    with arrow_in(tmp_path / "arrow"), one_thread():
        case.extract()
        record_path(case.files()[0]).unlink()
        with pytest.raises(CacheMiss):
            case.find()
        yield case


def test_one_process_writes_it_anew(case: Case) -> None:
    before = case.files()[0].stat()
    with counted() as passes:
        result = case.extract()
    assert result.cached and result.encoded == 0 and passes == []
    assert case.find().path == result.path
    after = result.path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # not assembled again


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.hostile
def test_several_processes_write_it_anew(case: Case) -> None:
    (result,) = extract_splits(case.settings(device="cpu"), ["train"], workers=2)
    assert result.encoded == 0
    assert case.find().path == result.path


def test_another_worker_writes_it_where_the_one_that_sealed_the_file_was_killed(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.files()[0].unlink()
    run = FileMaker.run

    def without_the_record(self: FileMaker) -> EncodedCounts:
        return replace(run(self), sealed=False)  # as for a worker that finds the file sealed by another

    monkeypatch.setattr(FileMaker, "run", without_the_record)
    case.extract()
    assert case.find().record.requests


def test_a_damaged_file_without_a_record_is_reported(case: Case) -> None:
    path = case.files()[0]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with counted() as passes, pytest.raises(Exception, match="damaged"):
        case.extract()
    assert passes == []


def test_a_record_in_a_folder_that_cannot_be_written_is_no_error(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.cache import catalog
    from featcache.errors import CacheError

    def refused(*_: object) -> None:
        raise CacheError("read-only")

    monkeypatch.setattr(catalog, "write_record", refused)
    assert case.extract().cached
    assert not read_record(case.files()[0], case.extract().fingerprint).requests
