"""Which splits a source has, and where the test split comes from where it has none."""

from __future__ import annotations

from dataclasses import replace

from featcache.data.arrow_table import open_tables, quiet_datasets
from featcache.data.locate import locate, used_as
from featcache.data.split import available
from featcache.settings import DataSettings
from featcache.translation.language import noted
from featcache.translation.sentences import FINISHED

TEST_SHARE = 0.1  # of train, where a test split is to be held out


def splits_for_training(data: DataSettings) -> tuple[str, ...]:
    """Train, validation and, where the source has one or one is held out, test.

    Raises:
        SourceError: it cannot be read.
    """
    with quiet_datasets():
        found = available(open_tables(data)[0], data)
    return ("train", "validation", *(["test"] if "test" in found else []))


def with_test_split(data: DataSettings) -> tuple[DataSettings, str | None]:
    """`data` with a test split where the files have none, and what was decided as a sentence.

    Validation becomes the test split; where there is none either, a tenth of train does (`test_share`). A hub
    dataset is left as it is, because its splits are not known before it is loaded.

    Raises:
        SourceError: files that do not exist, or that belong to no split.
    """
    if data.test_split is not None or data.test_share is not None:
        return data, None
    known = {used_as(name, data) for name in locate(data).splits}
    if "train" not in known or "test" in known:
        return data, None
    if "validation" in known:
        said = noted(
            "no test split: the validation split is the test split, and a part of train is held out for "
            "validation",
            FINISHED,
        )
        return replace(data, test_split="validation"), said
    said = noted(
        "one labelled split: a tenth of it is held out for test, and a part for validation", FINISHED
    )
    return replace(data, test_share=TEST_SHARE), said
