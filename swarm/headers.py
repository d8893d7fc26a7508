"""Headers of safetensors files: what tensors there are, their shapes, and where they lie."""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarm.errors import BadModel

HEADER_CAP = 100 * 1024 * 1024  # bytes; the safetensors format's own limit
PREFIX_BYTES = 8  # before the header: its size
INDEX = "model.safetensors.index.json"
LONE_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor of a checkpoint as its file's header describes it."""

    name: str
    file: Path
    dtype: str  # of safetensors: "F32", "BF16", ...
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    end: int

    @property
    def parameters(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)


def read_headers(folder: Path) -> list[TensorHeader]:
    """Return every tensor of the checkpoint, sorted by name; raises BadModel."""
    headers = [header for path in weight_files(folder) for header in _headers_of(path)]
    return sorted(headers, key=lambda header: header.name)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, by its index if it has one; raises BadModel."""
    index = folder / INDEX
    files = (
        [folder / name for name in indexed_files(index)]
        if index.is_file()
        else sorted(folder.glob("*.safetensors"))
    )
    if not files:
        pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        raise no_weights(str(folder), has_pickles=pickles)
    return files


def indexed_files(index: Path) -> list[str]:
    """The names of the files that an index distributes the tensors over; raises BadModel."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BadModel(f"{index} has no weight_map.", "Download the model again.")
    return sorted({Path(str(name)).name for name in names.values()})


def no_weights(where: str, *, has_pickles: bool) -> BadModel:
    """The error of a model without safetensors."""
    cause = "only pickled weights (.bin)" if has_pickles else "no safetensors weights"
    return BadModel(f"{where} has {cause}.", "Convert the model to safetensors.")


def header_end(prefix: bytes, where: str) -> int:
    """Where the header ends, by the first 8 bytes of a file; raises BadModel."""
    (size,) = struct.unpack("<Q", prefix) if len(prefix) == PREFIX_BYTES else (HEADER_CAP + 1,)
    if size > HEADER_CAP:
        raise BadModel(f"The header of {where} cannot be read.", "Download it again.")
    return PREFIX_BYTES + int(size)


def read_json(path: Path) -> dict[str, Any]:
    """The map in a JSON file; raises BadModel."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadModel(
            f"{path} cannot be read: {error.strerror}.", "Check its permissions."
        ) from error
    except ValueError as error:
        raise BadModel(f"{path} is not valid JSON.", "Download the model again.") from error
    if not isinstance(value, dict):
        raise BadModel(f"{path} is not a JSON map.", "Download the model again.")
    return value


def _headers_of(path: Path) -> Iterator[TensorHeader]:
    header, base = _read_header(path)
    header.pop("__metadata__", None)
    for name, facts in header.items():
        try:
            shape = tuple(int(size) for size in facts["shape"])
            start, end = (base + int(offset) for offset in facts["data_offsets"])
            yield TensorHeader(name, path, str(facts["dtype"]), shape, start, end)
        except (KeyError, TypeError, ValueError) as error:
            raise BadModel(
                f"The header of {path} is broken at {name[:80]}.", "Download it again."
            ) from error


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    try:
        with path.open("rb") as file:
            end = header_end(file.read(PREFIX_BYTES), str(path))
            header = json.loads(file.read(end - PREFIX_BYTES))
    except (OSError, ValueError) as error:
        raise BadModel(f"The header of {path} cannot be read.", "Download it again.") from error
    if not isinstance(header, dict):
        raise BadModel(f"The header of {path} is not a map.", "Download it again.")
    return header, end
