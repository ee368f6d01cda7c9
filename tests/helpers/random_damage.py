"""Seeded random damage to the bytes of a file."""

import random
from collections.abc import Callable

from semcorr.core.errors import UserError


def flip(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def flip_many(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.randrange(2, 30)):
        flip(content, draw)


def cut(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def empty(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    content[start : start + 200] = bytes(len(content[start : start + 200]))


def overwrite(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content) - 64)
    content[start : start + 64] = draw.randbytes(64)


def swap(content: bytearray, draw: random.Random) -> None:
    one, two = draw.randrange(len(content) - 50), draw.randrange(len(content) - 50)
    content[one : one + 50], content[two : two + 50] = content[two : two + 50], content[one : one + 50]


def insert(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    content[start:start] = draw.randbytes(draw.randrange(1, 9))


DAMAGE: list[Callable[[bytearray, random.Random], None]] = [flip, flip_many, cut, empty, overwrite, swap, insert]


def damage(content: bytes, seed: int) -> bytes:
    """One kind after another, from one seed to the next."""
    changed = bytearray(content)
    DAMAGE[seed % len(DAMAGE)](changed, random.Random(seed))
    return bytes(changed)


def refusal(read: Callable[[], object]) -> str:
    """What is said of a file that is refused, which is one line; nothing, if it is read."""
    try:
        read()
    except UserError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        return message
    return ""
