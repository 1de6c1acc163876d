"""Files that appear whole or not at all."""

import json
import os
from pathlib import Path


def write_file(path: str | os.PathLike, content: bytes, aside: Path | None = None) -> Path:
    """Write a file under another name and move it into place, so that no reader meets a half.

    Args:
        path: Where the file goes; its folder is made.
        content: What goes in.
        aside: Folder of the half-written file, on the same file system; that of ``path`` if None.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = (aside or path.parent) / f".{path.parent.name}-{path.name}.{os.getpid()}.part"
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def write_json(
    path: str | os.PathLike,
    content: object,
    indent: int | None = 1,
    aside: Path | None = None,
) -> Path:
    """Write a JSON file as :func:`write_file` does; ``indent=None`` leaves all blanks out."""
    separators = None if indent else (",", ":")
    text = json.dumps(content, indent=indent, separators=separators)
    return write_file(path, text.encode() + b"\n", aside)
