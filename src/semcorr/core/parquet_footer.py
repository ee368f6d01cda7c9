"""Checks of a Parquet file's footer before Arrow reads it: some footers would end the whole process.

The footer is a structure in Thrift's compact protocol. It is read as numbers of fields and their values.
"""

from typing import Any, BinaryIO

MAGIC = b"PAR1"
LARGEST = 16 << 20  # bytes of a footer: ours has some thousand
DEEPEST = 16  # structures within structures
CODECS = {0: "none", 1: "Snappy"}  # what we write; others can inflate a thousandfold
# Numbers of fields: of the file, of its groups of rows, of their columns, of what is said of those.
ROWS, GROUPS, COLUMNS, ELSEWHERE, ABOUT, CODEC = 3, 4, 1, 1, 3, 4
TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
WHOLE = (4, 5, 6)  # of 16, 32 and 64 bits
Fields = dict[int, Any]  # of a structure, by their numbers


class FooterError(ValueError):
    """A footer that does not belong to a table of ours."""


def require_footer(file: BinaryIO, size: int) -> None:
    """Refuse a footer that cannot be read, or that asks for what our tables have no need of.

    Args:
        file: Open file, at any position.
        size: Size of the file, in bytes.

    Raises:
        FooterError: It is damaged; values lie in another file; or they are compressed in another way than ours.
    """
    file.seek(max(0, size - 8))
    length, end = int.from_bytes(file.read(4), "little"), file.read(4)
    if end != MAGIC or not 0 < length <= min(LARGEST, size - 12):
        raise FooterError("it has no end of a Parquet file")
    file.seek(size - 8 - length)
    try:
        footer = _Reader(file.read(length)).struct(0)
        groups = [column for group in footer[GROUPS] for column in group[COLUMNS]] if footer[ROWS] else []
        codecs = {column[ABOUT][CODEC] for column in groups}
        elsewhere = any(ELSEWHERE in column for column in groups)
    except (IndexError, KeyError, TypeError, RecursionError) as error:
        raise FooterError("its footer cannot be read") from error
    if elsewhere:
        raise FooterError("it names another file as the place of its values")
    if unknown := codecs - CODECS.keys():
        raise FooterError(f"it is compressed by codec {min(unknown)}; only {', '.join(CODECS.values())} are read")


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def struct(self, depth: int) -> Fields:
        """Read the fields of a structure by their numbers."""
        if depth > DEEPEST:
            raise FooterError("its footer is nested too deeply")
        fields: Fields = {}
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.whole()
            fields[number] = self.value(head & 15, depth)
        return fields

    def value(self, kind: int, depth: int) -> object:
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind == BYTE:
            return self.byte()
        if kind in WHOLE:
            return self.whole()
        if kind == DOUBLE:
            return self.bytes(8)
        if kind == BINARY:
            return self.bytes(self.unsigned())
        if kind in (LIST, SET):
            return self.list(depth)
        if kind == STRUCT:
            return self.struct(depth + 1)
        raise FooterError("its footer cannot be read")

    def list(self, depth: int) -> list[object]:
        head = self.byte()
        length, kind = head >> 4, head & 15
        if length == 15:
            length = self.unsigned()
        if length > len(self.content) - self.place:  # each takes a byte at the least
            raise FooterError("its footer cannot be read")
        read_item = self.byte if kind in (TRUE, FALSE) else lambda: self.value(kind, depth)
        return [read_item() for _ in range(length)]

    def byte(self) -> int:
        self.place += 1
        return self.content[self.place - 1]

    def bytes(self, length: int) -> bytes:
        if length > len(self.content) - self.place:
            raise FooterError("its footer cannot be read")
        self.place += length
        return self.content[self.place - length : self.place]

    def unsigned(self) -> int:
        total = shift = 0
        while (part := self.byte()) & 0x80:
            total, shift = total | (part & 0x7F) << shift, shift + 7
            if shift > 63:
                raise FooterError("its footer cannot be read")
        return total | part << shift

    def whole(self) -> int:
        value = self.unsigned()
        return value >> 1 ^ -(value & 1)
