"""How the VQA challenge makes answers comparable: punctuation, number words, articles, apostrophes. Torch-free."""

from __future__ import annotations

import re

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
# Contractions are compared without their apostrophe, which makes `dont` and `don't` one word.
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_INNER_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9])")
_POINT = re.compile(r"(?<![0-9])\.|\.(?![0-9])")
_PUNCTUATION = re.compile(r"[^\w\s.]|_")


def vqa_normalised(text: str) -> str:
    """Lower case, no articles and punctuation (decimal points stay), number words up to ten as digits."""
    text = _INNER_COMMA.sub("", _APOSTROPHE.sub("", text.lower()))
    text = _PUNCTUATION.sub(" ", _POINT.sub("", text))
    return " ".join(_WORDS.get(word, word) for word in text.split() if word not in _ARTICLES)
