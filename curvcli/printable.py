"""Foreign strings made safe to show: names of parameters, files and classes that somebody else chose."""

from __future__ import annotations

import unicodedata

INVISIBLE = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
"""Unicode categories that a terminal obeys, or that cannot be seen: controls, bidirectional marks, surrogates."""


def printable(text: str) -> str:
    r"""The text with every character that is not shown as itself written as an escape.

    >>> printable("a\x1b]0;title\x07 b\u202e")
    'a\\x1b]0;title\\x07 b\\u202e'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in INVISIBLE else char for char in text
    )
