"""Seeded random damage to the bytes of a file, and to what a JSON file holds."""

import copy
import random
from collections.abc import Callable

from semcorr.core.errors import UserError

JUNK = ["", " ", "0", "-1", "nan", "inf", "1e400", "x", "1,2", "1;2", "../a", "\u00e9", "9" * 30, "cats/1.jpg", "a\tb"]
VALUES = [*JUNK, None, True, [], {}, [1], {"a": 1}, -5, 0, 1e300, float("nan"), float("inf"), 10**18]


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


def spoil_tree(tree: object, draw: random.Random) -> object:
    """Put junk in place of some value, drop it, or repeat it."""
    for _ in range(draw.randrange(1, 4)):
        node, steps = tree, draw.randrange(1, 9)
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw.choice(keys)
            steps -= 1
            if steps > 0 and isinstance(node[key], list | dict):
                node = node[key]
                continue
            if draw.randrange(4) == 0:
                del node[key]
            elif draw.randrange(4) == 0 and isinstance(node, list):
                node.append(copy.deepcopy(node[key]))
            else:
                node[key] = copy.deepcopy(draw.choice(VALUES))
            break
    return tree


def refusal(read: Callable[[], object]) -> str:
    """What is said of a file that is refused, which is one line; nothing, if it is read."""
    try:
        read()
    except UserError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        return message
    return ""
