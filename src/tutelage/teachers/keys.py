"""The API key: read from a named environment variable, and kept out of everything that is written down.

Promises: no error shows a key; a reply that repeats the key, plainly, with JSON escapes, or in pieces over
the chunks of a stream, comes back without it.
Does not: find a key that a server has encoded in some other way, or keep it from a debugger.
"""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache

from tutelage.errors import UsageError
from tutelage.teachers.streams import is_stream, read_stream

HIDDEN = b"***"
# Servers that want no key are given one like "x", "none" or "EMPTY", which is no secret but an English word.
SHORTEST = 6


def read_key(key_env: str) -> str:
    """The API key in the environment variable `key_env`, "" when none is wanted.

    Raises UsageError when the variable is not set; never shows its value, nor a `key_env` that may be one."""
    if not key_env:
        return ""
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", key_env):
        raise UsageError("key_env: give the NAME of an environment variable (capitals), never the key itself")
    key = os.environ.get(key_env, "").strip()
    if not key:
        raise UsageError(f"key_env: the environment variable {key_env} is not set")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"key_env: {key_env} holds something that cannot be a key")
    return key


def hide_key(raw: bytes, key: str) -> bytes:
    """A reply without the key. It is left as it came, byte for byte, where the key is not in it; a stream
    that spells the key over several chunks becomes the reply that it adds up to."""
    if len(key) < SHORTEST:
        return raw
    raw = _hidden(raw, key)
    if not is_stream(raw):
        return raw
    try:
        whole = json.dumps(read_stream(raw)).encode()
    except RecursionError:  # deeper than any text is looked for
        return raw
    hidden = _hidden(whole, key)
    return raw if hidden == whole else hidden


def _hidden(raw: bytes, key: str) -> bytes:
    raw = raw.replace(key.encode(), HIDDEN)
    return _spellings(key).sub(HIDDEN, raw) if b"\\" in raw else raw


@lru_cache(maxsize=8)
def _spellings(key: str) -> re.Pattern[bytes]:
    """The ways JSON can spell the key: a character as itself, by its number, some with a backslash."""
    ways = []
    for character in key:
        plain = re.escape(character.encode())
        number = rb"\\u00(?:%02x|%02X)" % (ord(character), ord(character))
        escaped = [rb"\\" + plain] if character in '"\\/' else []
        ways.append(b"(?:" + b"|".join([plain, number, *escaped]) + b")")
    return re.compile(b"".join(ways))
