"""Safetensors headers: a model's files and tensors, their shapes, and where they lie."""

import json
import math
import re
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from swarm.errors import BadModel

HEADER_CAP = 100 * 1024 * 1024  # bytes; the safetensors format's own limit
PREFIX_BYTES = 8  # before the header: its size
INDEX = "model.safetensors.index.json"
LONE_FILE = "model.safetensors"
METADATA_FILES = (  # what a client needs, and a node besides its weights
    *("config.json", "generation_config.json", "tokenizer*", "*.model", "vocab.*", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template*", INDEX),
)
POINTER = b"version https://git-lfs.github.com/spec/v1"  # how a file begins that git left behind
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
OTHER_WEIGHTS = (
    "adapter",
    "consolidated",
    "training_args",
    "optimizer",
)  # lie beside a model's own
DTYPE_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8},
    **{"U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32},
    **{"U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
TENSORS_CAP = 1 << 20  # of one checkpoint


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
    """Return every tensor of the checkpoint, sorted by name; raises BadModel.

    Each lies within its file and has the bytes that its shape takes, and none is there twice.
    """
    found: dict[str, TensorHeader] = {}
    for path in weight_files(folder):
        for header in _headers_of(path):
            if (other := found.setdefault(header.name, header)) is not header:
                raise BadModel(
                    f"{other.file.name} and {path.name} in {folder} both hold {header.name[:80]}.",
                    "Leave only the files of one copy of the model there.",
                )
    return sorted(found.values(), key=lambda header: header.name)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load of a folder; raises BadModel."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    index = folder / INDEX
    if LONE_FILE not in names and index.is_file():
        names, here = indexed_files(index), set(names)
        if absent := sorted(set(names) - here):
            raise BadModel(f"{folder} lacks {absent[0]}.", "Download the model again.")
    files = [folder / name for name in files_to_load(names, str(folder))]
    if not files:
        pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        raise no_weights(str(folder), has_pickles=pickles)
    return files


def is_metadata_file(name: str) -> bool:
    """Whether a file of a repository is small and needed by everybody."""
    return "/" not in name and any(fnmatch(name, pattern) for pattern in METADATA_FILES)


def files_to_load(names: Collection[str], where: str) -> list[str]:
    """Of the safetensors in a folder or repository without index, those of the model itself.

    The lone file before all others, then numbered parts; raises BadModel if one of them is absent.
    """
    if LONE_FILE in names:
        return [LONE_FILE]
    own = sorted(name for name in names if not name.startswith(OTHER_WEIGHTS))
    parts = [match for name in own if (match := PART.fullmatch(name))]
    if not parts:
        return own
    first = min(parts, key=lambda each: (each["stem"] != "model", each["stem"]))
    count = int(first["count"])
    wanted = [f"{first['stem']}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    if absent := sorted(set(wanted) - set(own)):
        raise BadModel(f"{where} lacks {absent[0]}.", "Download the model again.")
    return wanted


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
    if prefix and POINTER.startswith(prefix):
        raise left_behind(where)
    (size,) = struct.unpack("<Q", prefix) if len(prefix) == PREFIX_BYTES else (HEADER_CAP + 1,)
    if size > HEADER_CAP:
        raise BadModel(f"The header of {where} cannot be read.", "Download it again.")
    return PREFIX_BYTES + int(size)


def left_behind(where: str) -> BadModel:
    """The error of a file that was cloned without git-lfs."""
    return BadModel(
        f"{where} is a pointer of git-lfs, the file itself was never fetched.",
        "Run `git lfs pull` in its folder, or download the model again.",
    )


def is_pointer(path: Path) -> bool:
    """Whether git left a pointer in place of a file; raises OSError."""
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def read_json(path: Path) -> dict[str, Any]:
    """The map in a JSON file; raises BadModel."""
    try:
        if is_pointer(path):
            raise left_behind(str(path))
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadModel(
            f"{path} cannot be read: {error.strerror}.", "Check its permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadModel(f"{path} is not valid JSON.", "Download the model again.") from error
    if not isinstance(value, dict):
        raise BadModel(f"{path} is not a JSON map.", "Download the model again.")
    return value


def _headers_of(path: Path) -> Iterator[TensorHeader]:
    header, base = _read_header(path)
    header.pop("__metadata__", None)
    if len(header) > TENSORS_CAP:
        raise BadModel(f"{path} has {len(header)} tensors.", "Name another model.")
    size = path.stat().st_size
    for name, facts in header.items():
        try:
            shape = tuple(int(size) for size in facts["shape"])
            start, end = (base + int(offset) for offset in facts["data_offsets"])
            found = TensorHeader(name, path, str(facts["dtype"]), shape, start, end)
            _require_extent(found, base)
        except (KeyError, TypeError, ValueError) as error:
            raise BadModel(
                f"The header of {path} is broken at {name[:80]}.", "Download it again."
            ) from error
        if found.end > size:
            raise BadModel(
                f"{path} is cut off: it has {size} bytes, and {name[:80]} ends at {found.end}.",
                "Download it again.",
            )
        yield found


def _require_extent(header: TensorHeader, base: int) -> None:
    """Raise ValueError unless a tensor has the bytes that its shape and dtype take."""
    bits = DTYPE_BITS.get(header.dtype)
    if header.start < base or min(header.shape, default=0) < 0:
        raise ValueError("a tensor lies before the header's end, or has a negative size")
    if bits is not None and (header.end - header.start) * 8 != header.parameters * bits:
        raise ValueError("a tensor's bytes are not those of its shape")


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    try:
        with path.open("rb") as file:
            end = header_end(file.read(PREFIX_BYTES), str(path))
            text = file.read(end - PREFIX_BYTES)
        if len(text) < end - PREFIX_BYTES:
            raise BadModel(f"{path} is cut off within its header.", "Download it again.")
        header = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise BadModel(f"The header of {path} cannot be read.", "Download it again.") from error
    if not isinstance(header, dict):
        raise BadModel(f"The header of {path} is not a map.", "Download it again.")
    return header, end
