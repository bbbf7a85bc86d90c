"""The encoding of a text file, from a look at all of its bytes.

UTF-8 proves itself. Other encodings are compared by how likely the text is that they make of the file; if
that leaves more than one, the user is asked. Files are read in blocks.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Sequence

from featcache.data.formats.likelihood import (
    TextLikelihood,
    chinese,
    japanese,
    korean,
    mixed,
    traditional,
    western,
)
from featcache.errors import SourceError, UsageError

UTF8 = "utf-8-sig"
BLOCK = 1 << 18
BROKEN = "\udcff"  # stands for bytes that the encoding does not have
BROKEN_ERRORS = "featcache.broken"  # the error handler of codecs that makes BROKEN
NAME_IT = "name the right one with --encoding, e.g. --encoding gb18030 (or big5, shift_jis, latin-1, utf-16)"
_SAMPLE = 2048  # bytes of a block whose characters are compared
_MARGIN = 8.0  # by which the log-likelihood of the best candidate must be above the next one
_LEAST_COMMON = 0.8  # share of characters of the right candidate that are common in its language
_MOST_BROKEN = 0.02  # bytes that a candidate does not have, for each byte that is not ASCII
_LEAST_WIDE = 4  # bytes that are not ASCII; fewer do not tell an encoding, and are broken UTF-8
_ASKED = 4  # candidates in a question
_LINE = 160  # bytes of a line that the question shows
_MARKS = (
    (codecs.BOM_UTF8, UTF8),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What files of other kinds begin with: what they are, and what to do with them.
_OWN_ENDING = "give the file the ending of its kind, or save its table as csv"
_SAVE_TEXTS = "save its texts as csv, tsv, jsonl or xlsx"
_OTHER_KINDS = (
    (b"%PDF-", "a PDF document", _SAVE_TEXTS),
    (b"{\\rtf", "an RTF document", _SAVE_TEXTS),
    (b"PK\x03\x04", "a zip file or a document of Excel or Word (.zip, .xlsx)", _OWN_ENDING),
    (b"\xd0\xcf\x11\xe0", "an old document of Excel or Word (.xls)", _OWN_ENDING),
    (b"\x1f\x8b", "a gzip file (.csv.gz)", _OWN_ENDING),
    (b"PAR1", "a Parquet file (.parquet)", _OWN_ENDING),
    (b"\x89HDF", "an HDF5 file", _SAVE_TEXTS),
    (b"SQLite format 3", "an SQLite database", _SAVE_TEXTS),
    (b"\x89PNG", "a picture", _SAVE_TEXTS),
    (b"\xff\xd8\xff", "a picture", _SAVE_TEXTS),
)
# Codecs tried in this order: the later ones of a candidate have more characters.
_CANDIDATES: tuple[tuple[tuple[str, ...], Callable[[str], TextLikelihood]], ...] = (
    (("gb18030",), chinese),
    (("cp950", "big5hkscs"), traditional),
    (("cp932",), japanese),
    (("euc_jp",), japanese),
    (("cp949",), korean),
    (("cp1252", "latin-1"), western),
)
# What many programs call by these names has more characters than the names say.
_LARGER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "big5": "cp950", "utf-8": UTF8}
_NAMES = {
    UTF8: "UTF-8", "gb18030": "GB18030", "cp950": "Big5", "big5hkscs": "Big5-HKSCS", "cp932": "Shift-JIS",
    "cp949": "EUC-KR", "euc_jp": "EUC-JP", "cp1252": "Windows-1252", "latin-1": "Latin-1",
    "iso8859-1": "Latin-1", "utf-16": "UTF-16", "utf-16-le": "UTF-16-LE", "utf-16-be": "UTF-16-BE",
    "utf-32": "UTF-32",
}  # fmt: skip
_ASCII = bytes(range(128))
_WIDE = re.compile(rb"[\x80-\xff]")


def _broken(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return BROKEN, error.end


codecs.register_error(BROKEN_ERRORS, _broken)


def encoding_name(codec: str) -> str:
    """What people call the encoding of a Python codec."""
    return _NAMES.get(codec, codec)


def named_codec(encoding: str) -> str:
    """The codec for an encoding that a user names.

    Raises:
        UsageError: there is none of this name.
    """
    try:
        found = codecs.lookup(encoding).name
        "".encode(encoding)  # refuses `base64` and the like, which are codecs, but not of texts
    except (LookupError, ValueError):
        raise UsageError(
            f"--encoding {encoding}: there is no such encoding",
            hint="e.g. utf-8, gb18030, big5, shift_jis, euc_kr, utf-16, latin-1",
        ) from None
    return _LARGER.get(found, found)


def may_be_utf8(head: bytes) -> bool:
    """Whether a file that begins with these bytes can be UTF-8."""
    if b"\0" in head or any(head.startswith(mark) for mark, codec in _MARKS if codec != UTF8):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def find_encoding(blocks: Callable[[], Iterator[bytes]], name: str) -> str:
    """The codec of a file; of a file of UTF-8 with some broken lines it is that of UTF-8.

    Args:
        blocks: the file from its beginning, in blocks of an even number of bytes; called twice for a file
            that is not UTF-8.
        name: of the file, for messages.

    Raises:
        SourceError: it is no text; or several encodings may be right: it shows a line in each of them.
    """
    utf8, first, begin = _Utf8Share(), True, b""
    for block in blocks():
        begin = begin or block[:16]
        if first and (mark := next((codec for mark, codec in _MARKS if block.startswith(mark)), None)):
            return mark
        first = False
        utf8.add(block)
    if utf8.whole and not utf8.nulls:
        return UTF8
    for start, kind, hint in _OTHER_KINDS:
        if begin.startswith(start):
            raise SourceError(f"{name} is no text file: it is {kind}", hint=hint)
    if utf8.nulls:
        candidates = [_Candidate((codec,), mixed) for codec in ("utf-16-le", "utf-16-be", UTF8)]
    elif utf8.mostly:
        return UTF8
    else:
        candidates = [_Candidate(*one) for one in _CANDIDATES]
    line = b""
    for block in blocks():
        sample = _sample(block)
        width = len(block) if utf8.nulls else len(block.translate(None, _ASCII))
        line = line or sample
        for candidate in candidates:
            candidate.add(block, sample, width)
    ranked = sorted((one for one in candidates if one.possible), key=lambda one: -one.likelihood.log)
    if found := _certain(ranked):
        return found
    if utf8.mostly or candidates[0].wide < _LEAST_WIDE:
        return UTF8
    asked = [*(one.codec for one in ranked[:_ASKED]), "utf-8"]
    raise SourceError(
        f"{name} is not UTF-8 throughout, and its encoding is not certain; one of its lines, read as\n"
        + "\n".join(f"  {codec}: {_shown(line, codec)}" for codec in asked),
        hint=NAME_IT,
    )


class _Utf8Share:
    """How much of a file is UTF-8.

    Attributes:
        whole: all of it.
        nulls: it has a null byte, as UTF-16 does and texts do not.
    """

    def __init__(self) -> None:
        self.whole, self.nulls = True, False
        self._strict = codecs.getincrementaldecoder("utf-8")()
        self._lenient = codecs.getincrementaldecoder("utf-8")("replace")
        self._good = self._bad = 0

    def add(self, block: bytes) -> None:
        self.nulls = self.nulls or b"\0" in block
        if self.whole:
            try:
                # A character takes at most two bytes more in UTF-8, three in very few cases.
                self._good += (len(block) - len(self._strict.decode(block))) // 2
            except UnicodeDecodeError:
                self.whole = False
            else:
                return
        if self._bad > self._good + _SAMPLE:
            return
        text = self._lenient.decode(block)
        bad = text.count("\ufffd")
        self._bad += bad
        self._good += len(re.sub(r"[\x00-\x7f]+", "", text)) - bad

    @property
    def mostly(self) -> bool:
        """Whether more characters are whole than broken."""
        return self.whole or self._good > self._bad


class _Candidate:
    """An encoding that a file may have, and how likely its text is."""

    def __init__(self, codec_names: Sequence[str], judge: Callable[[str], TextLikelihood]) -> None:
        self._codecs, self._judge = list(codec_names), judge
        self.likelihood = TextLikelihood()
        self._given_up, self.wide = False, 0
        self._begin()

    def _begin(self) -> None:
        self._decoder = codecs.getincrementaldecoder(self.codec)("replace")
        self._broken = 0

    @property
    def codec(self) -> str:
        return self._codecs[0]

    @property
    def possible(self) -> bool:
        return self._broken <= _MOST_BROKEN * self.wide

    def add(self, block: bytes, sample: bytes, wide: int) -> None:
        """Decode a block, of which `wide` bytes are not ASCII, and judge the sample of it."""
        if self._given_up:
            return
        self.wide += wide
        self._broken += self._decoder.decode(block).count("\ufffd")
        if not self.possible and len(self._codecs) > 1:
            del self._codecs[0]
            self._begin()
            self._broken += self._decoder.decode(block).count("\ufffd")
        self._given_up = not self.possible and self.wide > _SAMPLE
        self.likelihood += self._judge(sample.decode(self.codec, "replace"))


def _sample(block: bytes) -> bytes:
    """From a line with a byte that is not ASCII, and from an even place, as UTF-16 needs it.

    A block may begin within a character, so that its first line is the last choice.
    """
    found = _WIDE.search(block, block.find(b"\n") + 1) or _WIDE.search(block)
    at = 0 if found is None else max(block.rfind(b"\n", 0, found.start()) + 1, found.start() - _LINE)
    return block[at & ~1 : (at & ~1) + _SAMPLE]


def _certain(ranked: Sequence[_Candidate]) -> str | None:
    """The codec of the first candidate, where it is likely and no other one is."""
    if not ranked or ranked[0].wide < _LEAST_WIDE or ranked[0].likelihood.common_share < _LEAST_COMMON:
        return None
    logs = [one.likelihood.log for one in ranked[:2]]
    return ranked[0].codec if len(logs) == 1 or logs[0] - logs[1] >= _MARGIN else None


def _shown(line: bytes, codec: str) -> str:
    text = line[:_LINE].decode(codec, "replace").strip().split("\n")[0]
    return "".join(char if char.isprintable() else " " for char in text[:60])
