"""Words and sentences to be spoken, and the filter that keeps sentences free of keywords by their sound.

    read_words       a list of words, one per line
    read_sentences   a plain text -> its sentences that can be read aloud
    split_of         the split a sentence belongs to, by a hash of it: no sentence is in two splits
    KeywordFilter    which words, and so which sentences, hold a keyword

Pronunciations come from espeak-ng, in American and in British English.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from toolkit.errors import DataError, MissingPartError

ACCENTS = ("en-us", "en-gb")
SPLIT_PERCENT = {"train": 10, "tune": 30, "report": 60}
SENTENCE_WORDS = (4, 24)
WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
SPEAKABLE = re.compile(r"[A-Z][A-Za-z' ,;:-]*[.?!]")
INITIALISM = re.compile(r"\b[A-Z]{2,}\b|(?<![A-Za-z'])(?![AaIO]\b)[A-Za-z](?![A-Za-z'])")  # letters are named: USA, C

PHONEME_VARIANTS = {  # of espeak-ng -x
    "@": "V", "@-": "V", "a#": "V", "I#": "I", "I2": "I", "d#": "d", "n-": "n", "t#": "t", "t2": "t",
}  # fmt: skip
VOWEL = re.compile(r"[aAeEiIoOuUV03@]")
ONSETS = {  # the consonants that may stand between the start of an English syllable and this one
    "l": "p b k g f s v", "r": "p b t d k g f T S", "n": "s", "m": "s", "p": "s", "t": "s", "k": "s", "f": "s",
    "w": "t d k s T", "j": "p b t d k g f v m n l h s T",
}  # fmt: skip


def read_text(path: Path) -> str:
    """The file as text. Raises DataError."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name a plain text file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}): expected plain text, convert it first") from None
    if not text.strip():
        raise DataError(f"{path} is empty: expected plain text")
    return text


def sha256_of(path: Path) -> str:
    """Of a text, by which a corpus names it. Raises DataError."""
    return hashlib.sha256(read_text(path).encode()).hexdigest()


def read_words(path: Path) -> tuple[str, ...]:
    """The words of a list, one per line, each once. Raises DataError."""
    return check_words([line.strip() for line in read_text(path).splitlines() if line.strip()], str(path))


def check_words(words: Sequence[str], where: str) -> tuple[str, ...]:
    """``words``, each once. Raises DataError where one is anything but letters."""
    for number, word in enumerate(words, 1):
        if not (word.isascii() and word.isalpha()):
            raise DataError(f"word {number} of {where} is {word!r}: expected one word of the letters a to z")
    return tuple(dict.fromkeys(words))


def read_sentences(path: Path) -> Iterator[str]:
    """The sentences of a plain text with 4 to 24 words and nothing but words and punctuation, each once.

    Lines are joined, blank lines separate. What holds a digit, a symbol or an abbreviation is left out: engines differ
    in how they read it.
    """
    seen = set()
    for paragraph in re.split(r"\n\s*\n", read_text(path)):
        for sentence in re.split(r"(?<=[.?!])[\"')]*\s+", " ".join(paragraph.split())):
            count = len(WORD.findall(sentence))
            if (
                SENTENCE_WORDS[0] <= count <= SENTENCE_WORDS[1]
                and SPEAKABLE.fullmatch(sentence)
                and not INITIALISM.search(sentence)
                and sentence not in seen
            ):
                seen.add(sentence)
                yield sentence


def split_of(sentence: str) -> str:
    """ "train", "tune" or "report" of a sentence: a hash of its words, so that case and punctuation do not matter."""
    words = " ".join(WORD.findall(sentence.lower()))
    percent = int(hashlib.sha256(words.encode()).hexdigest()[:8], 16) % 100
    for split, share in SPLIT_PERCENT.items():
        percent -= share
        if percent < 0:
            return split
    raise AssertionError("SPLIT_PERCENT sums to 100")


class KeywordFilter:
    """Which words sound as if a keyword were in them.

    A word holds a keyword where the keyword's phonemes fill whole syllables of it. They do not where a consonant before
    them must belong to their syllable (cup, bright, snow), nor, for a keyword that ends in a vowel, where the
    consonants after them must (note, goal); but a final s or z counts as an ending (knows). Where the syllables can be
    cut in two ways, the word holds the keyword (notice, goes, outright). Stress and length do not count, and the vowels
    of "up" and of "a" are one (upon, appear). Words are judged one by one, not across their borders.
    """

    def __init__(self, keywords: Sequence[str]) -> None:
        """Raises MissingPartError where espeak-ng is not installed, DataError where it cannot say a keyword."""
        self.keywords = tuple(keywords)
        self._held: dict[str, bool] = {}
        self._sounds = {accent: list(pronounce(self.keywords, accent)) for accent in ACCENTS}

    def learn(self, words: Iterable[str]) -> None:
        """Look up all ``words`` at once, which is a hundred times faster than one by one."""
        new = sorted({word for word in map(str.lower, words) if word not in self._held})
        self._held.update(dict.fromkeys(new, False))
        for accent in ACCENTS if self.keywords else ():
            for word, sound in zip(new, pronounce(new, accent), strict=True):
                self._held[word] |= any(holds(sound, keyword) for keyword in self._sounds[accent])

    def holds(self, text: str) -> bool:
        """Whether a word of ``text`` holds a keyword."""
        words = [word.lower() for word in WORD.findall(text)]
        self.learn(words)
        return any(self._held[word] for word in words)


def holds(word: Sequence[str], keyword: Sequence[str]) -> bool:
    """Whether the phonemes ``keyword`` fill whole syllables of the phonemes ``word``, as KeywordFilter says."""
    length = len(keyword)
    for start in range(len(word) - length + 1):
        if list(word[start : start + length]) != list(keyword):
            continue
        before, after = [], list(word[start + length :])
        for phoneme in reversed(word[:start]):
            if is_vowel(phoneme):
                break
            before.insert(0, phoneme)
        first_syllable = len(before) == start
        if before and (is_vowel(keyword[0]) or (first_syllable and is_onset([*before, keyword[0]]))):
            continue
        if is_vowel(keyword[-1]) and after not in ([], ["s"], ["z"]):
            coda = next((i for i, phoneme in enumerate(after) if is_vowel(phoneme)), None)
            if coda is None or not is_onset(after[:coda]):
                continue
        return True
    return False


def is_vowel(phoneme: str) -> bool:
    return VOWEL.match(phoneme) is not None


def is_onset(consonants: Sequence[str]) -> bool:
    """Whether an English syllable may begin with these."""
    pairs = zip(consonants, consonants[1:], strict=False)
    return all(first in ONSETS.get(second, "").split() for first, second in pairs)


def pronounce_alike(words: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those of ``words`` that are said like one of ``others`` in some accent."""
    alike: set[str] = set()
    for accent in ACCENTS if words and others else ():
        sounds = set(pronounce(others, accent))
        alike |= {word for word, sound in zip(words, pronounce(words, accent), strict=True) if sound in sounds}
    return [word for word in words if word in alike]


def pronounce(words: Sequence[str], accent: str) -> Iterator[tuple[str, ...]]:
    """The phonemes of each word in espeak-ng's notation, without stress and length."""
    if not words:
        return
    command = ["espeak-ng", "-q", "-x", "--sep=_", "-v", accent]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as heard:  # a pipe is written line by line
        said.write("\n".join(words))
        said.seek(0)
        try:
            subprocess.run(command, stdin=said, stdout=heard, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise MissingPartError(f"pronunciations need espeak-ng, which failed ({error}): install it") from None
        heard.seek(0)
        lines = [line for line in heard if line.strip()]
    if len(lines) != len(words):
        raise DataError(f"espeak-ng gave {len(lines)} pronunciations of {len(words)} words: they must be plain words")
    for line in lines:
        yield phonemes_of(line)


@cache
def phonemes_of(line: str) -> tuple[str, ...]:
    phonemes = (re.sub(r"[',%=:;|~\s]", "", part) for part in line.split("_"))
    return tuple(PHONEME_VARIANTS.get(phoneme, phoneme) for phoneme in phonemes if phoneme)
