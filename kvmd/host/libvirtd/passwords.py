"""Passwords of screens: facts and operations carry a keyed digest, and only this hand puts the word in its place.

The key is drawn by each process and never written: what a log or a plan would show of a digest tells nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable
from xml.sax.saxutils import escape, unescape

from kvmd.errors import Stale

_KEY = os.urandom(32)
_PREFIX = "hidden:"
_ENTITIES = {"&apos;": "'", "&quot;": '"'}
# libvirt writes attributes in single quotes, ElementTree in double ones; passwd is an attribute of no other element.
_PASSWORD = re.compile(r"(<graphics\b[^>]*?\bpasswd=)(?:'([^']*)'|\"([^\"]*)\")")


def hide(password: str) -> str:
    """The digest that stands for a password in this process."""
    return _PREFIX + hmac.new(_KEY, password.encode(), hashlib.sha256).hexdigest()


def hide_in(xml: str) -> str:
    """The same XML with a digest for each password."""
    if "passwd=" not in xml:
        return xml
    return _PASSWORD.sub(lambda match: f"{match[1]}'{hide(_word(match))}'", xml)


def words_in(xml: str) -> list[str]:
    """The passwords in XML as libvirt has it."""
    return [_word(match) for match in _PASSWORD.finditer(xml)]


def reveal_in(xml: str, words: Iterable[str]) -> str:
    """Put the passwords back for their digests; raises Stale for one that is no longer known."""
    known = {hide(word): word for word in words}

    def reveal(match: re.Match[str]) -> str:
        word = known.get(_word(match))
        if word is None:
            raise Stale("the password of the screen has changed since the plan")
        return f'{match[1]}"{escape(word, {chr(34): "&quot;"})}"'

    return _PASSWORD.sub(reveal, xml)


def _word(match: re.Match[str]) -> str:
    return unescape(match[2] if match[2] is not None else match[3], _ENTITIES)
