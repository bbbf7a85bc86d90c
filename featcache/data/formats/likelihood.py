"""How likely a decoded text is in the languages of an encoding.

The national standards order their characters by use: the first levels of GB 2312, Big5 and JIS X 0208 are
what people write, the later ones are rare. A text in the wrong encoding has rare characters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

# Log-likelihoods of one character of each class: the share of the class in texts by its size.
_FREQUENT = -5.5  # 0.4 of a hundred characters
_COMMON = -8.9  # 0.5 of four thousand
_RARE = -13.3  # 0.03 of twenty thousand
_ODD = -17.0  # no letter, or bytes that the encoding does not have
_ASCII = -3.0
_ACCENTED = -4.5  # a letter with an accent after a plain one
_IN_A_ROW = -7.5  # after another one

_CHINESE = (
    "的一是不了在人有我他这這个個们們中来來上大为為和国國地到以说說时時要就出会會可也你对對生能而子那得着"
    "自之年过過发發后後里裡用道行所然家种種事成方多经經么麼去学學如都同现現没沒动動面起看定天分还還好小"
    "部其些主样樣很买買太店服务務房间間东東西书書电電价價格质質量感觉覺非常，。！、？"
)
_KOREAN = "이다에의는로하을가고지서한은기으년대사시를리도인스일"
_WESTERN_SIGNS = "’‘“”–—…€£§°«»·©®¿¡ºª"
_OF_ONE_LANGUAGE = "ðþýÐÞÝ"  # Turkish letters look like these in Windows-1252


@dataclass(frozen=True)
class TextLikelihood:
    """Of a text, or of several together.

    Attributes:
        log: sum of the log-likelihoods of the characters.
        common: characters that are common in the language.
        counted: characters that are not ASCII.
    """

    log: float = 0.0
    common: int = 0
    counted: int = 0

    def __add__(self, other: TextLikelihood) -> TextLikelihood:
        return TextLikelihood(self.log + other.log, self.common + other.common, self.counted + other.counted)

    @property
    def common_share(self) -> float:
        """1 for a text of ASCII alone."""
        return self.common / self.counted if self.counted else 1.0


def chinese(text: str) -> TextLikelihood:
    """In simplified characters."""
    return _by_use(text, frozenset(_CHINESE), _level("gb2312", 0xD7))


def traditional(text: str) -> TextLikelihood:
    """Chinese in traditional characters."""
    return _by_use(text, frozenset(_CHINESE), _level("cp950", 0xC6, 0xA4))


def japanese(text: str) -> TextLikelihood:
    return _by_use(text, _kana(), _level("euc_jp", 0xCF))


def korean(text: str) -> TextLikelihood:
    return _by_use(text, frozenset(_KOREAN), _level("euc_kr", 0xC8))


def western(text: str) -> TextLikelihood:
    """In Latin letters, where an accented letter seldom follows another one."""
    log, common, counted = 0.0, 0, 0
    for run in re.findall(r"[^\x00-\x7f]+", text):
        counted += len(run)
        for place, char in enumerate(run):
            usual = char in _WESTERN_SIGNS or (char.isalpha() and char not in _OF_ONE_LANGUAGE)
            common += usual and place == 0
            log += _ODD if not usual else _IN_A_ROW if place else _ACCENTED
    return TextLikelihood(log + _ASCII * (len(text) - counted), common, counted)


def mixed(text: str) -> TextLikelihood:
    """In any of these languages."""
    return _by_use(text, frozenset(_CHINESE) | _kana(), _any_level())


def _by_use(text: str, frequent: frozenset[str], common: frozenset[str]) -> TextLikelihood:
    log, usual, counted = 0.0, 0, 0
    for char, times in Counter(text).items():
        if char.isascii() and char != "\0":
            log += _ASCII * times
            continue
        counted += times
        if char in frequent or char in common:
            usual += times
            log += times * (_FREQUENT if char in frequent else _COMMON)
        else:
            log += times * (_RARE if char.isalpha() else _ODD)
    return TextLikelihood(log, usual, counted)


@cache
def _kana() -> frozenset[str]:
    return _characters("euc_jp", range(0xA4, 0xA5)) | frozenset("ー、。")


@cache
def _level(codec: str, last: int, first: int = 0xB0) -> frozenset[str]:
    """The characters of the first level of a standard, and its signs."""
    return _characters(codec, range(0xA1, 0xA4)) | _characters(codec, range(first, last + 1)) | _more(codec)


def _more(codec: str) -> frozenset[str]:
    return _characters(codec, range(0xA5, 0xA6)) if codec == "euc_jp" else frozenset()  # katakana


@cache
def _any_level() -> frozenset[str]:
    latin = frozenset(map(chr, range(0xC0, 0x250))) | frozenset(_WESTERN_SIGNS)
    return (
        latin
        | _level("gb2312", 0xD7)
        | _level("cp950", 0xC6, 0xA4)
        | _level("euc_jp", 0xCF)
        | _level("euc_kr", 0xC8)
    )


def _characters(codec: str, leads: Iterable[int]) -> frozenset[str]:
    """The characters of some rows of a standard: of two bytes, the first of which is in `leads`."""
    found = {bytes((lead, trail)).decode(codec, "ignore") for lead in leads for trail in range(0x40, 0xFF)}
    return frozenset("".join(found)) - frozenset(map(chr, range(128)))
