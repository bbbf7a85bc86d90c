"""Tables in memory (pandas, datasets, pyarrow, polars) as files in the cache folder, named by their content.

From then on they are files like any other: the same rows are found again in the next session, `inspect` shows
their texts, and a run says what it was trained on.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.data.locate import SPLITS, split_name
from featcache.errors import SourceError
from featcache.system.durable import explained, fsync_file, fsync_folder, temporary_beside

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = "a pandas DataFrame, a datasets.Dataset, an Arrow table, or a mapping of these by split"


def is_table(data: object) -> bool:
    """Whether `data` is one table in memory."""
    return _is(data, "pandas", "DataFrame") or _is(data, "datasets", "Dataset") or _is_arrow(data)


def write_tables(data: object, folder: Path) -> Path:
    """Write a table, or one a split, as parquet files into a sub-folder of `folder`.

    The same tables give the same sub-folder, which is then left as it is.

    Args:
        data: a table, which becomes `train.parquet`; or a mapping of them by split, such as a `DatasetDict`.
        folder: made where it is not there.

    Raises:
        SourceError: no such table, an unknown split, or a column that holds no cells of one type.
    """
    tables = {name: arrow_table(table, name) for name, table in _by_split(data).items()}
    import pyarrow.parquet as pq

    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        new = temporary_beside(folder / "table")
        new.mkdir()
        try:
            digest = hashlib.sha256()
            for name in sorted(tables):
                path = new / f"{name}.parquet"
                pq.write_table(tables[name], path)
                fsync_file(path)
                digest.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
            target = folder / f"table-{digest.hexdigest()[:12]}"
            if not target.exists():
                new.rename(target)
                fsync_folder(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return target


def _by_split(data: object) -> dict[str, object]:
    if not isinstance(data, Mapping):
        return {"train": data}
    found: dict[str, object] = {}
    for key, table in data.items():
        name = split_name(str(key))
        if name is None or name in found:
            what = f"{key!r} is no split" if name is None else f"two tables are the {name} split"
            raise SourceError(what, hint=f"the keys are splits: {', '.join(SPLITS)}")
        found[name] = table
    if not found:
        raise SourceError("there is no table in the mapping", hint=f"featcache takes {KINDS}")
    return found


def arrow_table(data: object, name: str) -> pa.Table:
    """A table in memory as an Arrow table, with what `datasets` notes of its columns.

    Raises:
        SourceError: no table, or a column whose cells are not of one type; the message has `name`.
    """
    import pyarrow as pa

    try:
        if _is(data, "datasets", "Dataset"):
            return _of_dataset(data)
        if _is(data, "pandas", "DataFrame"):
            return pa.Table.from_pandas(data, preserve_index=False).replace_schema_metadata(None)
        if _is_arrow(data):
            return pa.table(data).replace_schema_metadata(None)
    except (pa.ArrowException, TypeError) as error:
        hint = "give the columns of text and label alone, with one type of cell in each"
        said = "; ".join(map(str, error.args))  # of an Arrow error several
        raise SourceError(f"the {name} table cannot be read: {said}", hint=hint) from error
    raise SourceError(
        f"the {name} data are {type(data).__name__}, and no table", hint=f"featcache takes {KINDS}"
    )


def _of_dataset(data: Any) -> pa.Table:
    return data.with_format("arrow")[:].replace_schema_metadata(data.features.arrow_schema.metadata)


def _is_arrow(data: object) -> bool:
    """Whether `data` is a table for Arrow, and no single column."""
    named = any(hasattr(data, name) for name in ("columns", "column_names", "schema"))
    return named and hasattr(data, "__arrow_c_stream__")


def _is(data: object, module: str, name: str) -> bool:
    """Whether `data` is of a class of a module that nobody need have imported."""
    found = sys.modules.get(module)
    return found is not None and isinstance(data, getattr(found, name))
