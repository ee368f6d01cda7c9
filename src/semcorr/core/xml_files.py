"""Reading of users' XML files: within bounds, without document types, and so without entities."""

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from semcorr.core.errors import UserError
from semcorr.core.text_files import MEGABYTE, read_content

SIZE = 256 * MEGABYTE  # bytes of a file
ELEMENTS = 3_000_000  # of a file: each takes some 300 bytes of memory
DEPTH = 64  # elements within elements


class _RefusedError(Exception):
    """What is valid XML, and not read."""


def read_xml(path: Path, remedy: str, limit: int = SIZE) -> Element:
    """Read an XML file that declares no document type.

    Args:
        path: The file.
        remedy: What to do about a file that cannot be read; ends the message.
        limit: Most bytes that are read.

    Raises:
        UserError: It is not XML, declares a document type, or is too large or too deep.
    """
    content = read_content(path, remedy, limit)
    try:
        return _parse(content)
    except _RefusedError as error:
        raise UserError(f"{path} {error}. {remedy}") from None
    except expat.ExpatError as error:
        raise UserError(f"{path} is not valid XML ({str(error).replace(chr(10), ' ')}). {remedy}") from None
    except (ValueError, LookupError):  # of an encoding that Python does not know, or that is none of single bytes
        raise UserError(f"{path} is in an encoding that is not read. Save it as UTF-8. {remedy}") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into memory. {remedy}") from None


def _parse(content: bytes) -> Element:
    builder, depth, count = TreeBuilder(), 0, 0
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, count
        depth += 1
        count += 1
        if depth > DEPTH:
            raise _RefusedError(f"has more than {DEPTH} elements within each other")
        if count > ELEMENTS:
            raise _RefusedError(f"has more than the {ELEMENTS} elements that are read of such a file")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise _RefusedError("declares a document type (<!DOCTYPE>), which is not read: it can define entities")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(content, True)
    return builder.close()
