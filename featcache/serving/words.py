"""The words of the page, which it asks for in the language of whoever looks at it.

`page/*.js` says `t("...")` with the same English sentences, `page/index.html` has them as `data-word`. The
page fills what stands in braces.
"""

from __future__ import annotations

from collections.abc import Sequence

from featcache.translation.language import gettext, in_language, noted

WORDS = (
    noted("Text"),
    noted("Second text"),
    noted("Label it"),
    noted("Enter sends, Shift+Enter starts a new line"),
    noted("Examples from the test set"),
    noted("Copy as curl"),
    noted("Copy as Python"),
    noted("Label files"),
    noted("Choose files"),
    noted("or drop them here"),
    noted("Columns, where they are not found by their names"),
    noted("Column with the text"),
    noted("Column with the second text"),
    noted("Earlier in this tab"),
    noted("Clear"),
    noted("There is no text yet: write one first."),
    noted("This model compares two texts, and the second one is empty."),
    noted("words alone"),
    noted("numbers"),
    noted("labels: {count}"),
    noted("at most {share} of its answers are wrong"),
    noted("at least {share} of texts are answered"),
    noted("intervals of {level} %"),
    noted("The server does not answer. Does it still run?"),
    noted("The server answers with an error ({status})."),
    noted("Tokens: {count}, read in parts of at most {limit}: {windows}"),
    noted("Tokens: {count} of at most {limit}"),
    noted("Tokens: {count}, of which {limit} are read; what is struck through is cut off."),
    noted("Tokens: {count}, of which {limit} are read; the rest is cut off."),
    noted("No answer"),
    noted("No label"),
    noted("from {share}"),
    noted("and {count} more"),
    noted("looked at {share}, "),
    noted("speaks for it"),
    noted("speaks against it"),
    noted("The strongest: {marks}."),
    noted("What decided"),
    noted("Between {low} and {high}: such intervals contain {level} % of the numbers."),
    noted("It answers from {share} on."),
    noted("The text is too long, and only a part of it was read."),
    noted("The model does not know most of this text's words."),
    noted("Answer"),
    noted("Copied."),
    noted("Selected: copy it with Ctrl+C."),
    noted("The server does not take this file, or does not answer."),
    noted("Sending: {share} %"),
    noted("Waiting, files before it: {count}"),
    noted("Waiting"),
    noted("Reading"),
    noted("Rows: {done} of {total}"),
    noted("Not labelled"),
    noted("Rows labelled: {done} of {total}"),
    noted("no answer: {count}"),
    noted("Download {name}"),
    noted("Texts that are too long and were read in part: {count}"),
    noted("Texts whose words the model mostly does not know: {count}"),
    noted("Cells that begin like a formula and have a ' in front: {count}"),
    noted("Rows without a label: {count}"),
    noted("line {line}: {problem}"),
    noted("Download the list"),
    noted("Remove"),
    noted("Cancel"),
    noted("Name its columns above if they have other names, and try again."),
    noted("Try again"),
    noted("{name} is larger than {size}."),
    noted("csv, tsv, json, jsonl, txt, parquet or Excel, at most {size} and {rows} rows."),
    noted("The result has the same columns and is kept for an hour, or until it is removed."),
)


def words_in(language: str, words: Sequence[str] = WORDS) -> dict[str, str]:
    """The words of a page in one of the languages of featcache, by the English ones."""
    with in_language(language):
        return {word: gettext(word) for word in words}
