"""Ways to damage a file: bits and lengths; the JSON in it; and safetensors that were changed and sealed again."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from jepa_rl.files import _checksum

SIZES = (0, 1, 7, 8, 9, 100, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
TRICKS = (
    "../../../etc/passwd",
    "/etc/passwd",
    "hub:../cartpole",
    "hub:cartpole",
    "\x00",
    "a/../../b",
    "..",
    "~/.ssh",
)
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 3.5, -0.0, 1e308, 10**6, 10**9, 10**12, 2**63, -(2**63), 10**400, float("nan"),
    float("inf"), "", "x", "1", "os.system", "x" * 100_000, [], {}, [[]], [0], [-1, -1, -1], [10**9] * 3, {"a": 1},
    {"__class__": "os.system"}, *TRICKS,
)  # fmt: skip


def nested(depth: int) -> str:
    """JSON that is nested so deeply that a recursive reader gives out."""
    return "[" * depth + "]" * depth


# -- any file -----------------------------------------------------------------------------------------


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 5, 50))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    count = rng.choice((1, 2, 8, 64, 512))
    found = rng.choice((b"\x00" * count, b"\xff" * count, rng.randbytes(count)))
    data[start : start + count] = found


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.choice((0, 1, 7, 8, 9, rng.randrange(len(data)), len(data) - 1)) :]


def extend(data: bytearray, rng: random.Random) -> None:
    count = rng.choice((1, 2, 8, 100))
    data += rng.choice((b"\x00" * count, b"\n" * count, rng.randbytes(count), bytes(data[:count]), b"{}\n"))


def move(data: bytearray, rng: random.Random) -> None:
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    piece = bytes(data[a:b])
    del data[a:b]
    at = rng.randrange(len(data) + 1)
    data[at:at] = piece if rng.random() < 0.5 else piece * 2


def replaced(data: bytearray, rng: random.Random) -> None:
    data[:] = rng.choice(
        (b"\x80\x04\x95\x1b\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.", b"PK\x03\x04", b"{}", b"[]",
         b"null", b"\xff\xfe", nested(100_000).encode(), rng.randbytes(200), b"\n\n\n")
    )  # fmt: skip


BYTES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip,
    flip,
    overwrite,
    truncate,
    extend,
    move,
    replaced,
)


# -- JSON ---------------------------------------------------------------------------------------------


def change(value: Any, rng: random.Random) -> Any:
    """The same JSON value with a change somewhere inside."""
    places = list(_places(value))
    if not places:
        return rng.choice(NASTY)
    owner, key = rng.choice(places)
    what = rng.random()
    if what < 0.15:
        del owner[key]
    elif what < 0.25 and isinstance(owner, dict):
        owner[rng.choice(("unknown", "__init__", "../x", "0"))] = owner.pop(key)
    elif what < 0.35 and isinstance(owner, dict):
        owner[rng.choice(("unknown", "seed", "device", "path"))] = rng.choice(NASTY)
    elif what < 0.5 and isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
        owner[key] = owner[key] * rng.choice((-1, 0, 2, 1000, 10**6)) + rng.choice((0, 1, -1, 0.5))
    else:
        owner[key] = copy.deepcopy(rng.choice(NASTY))
    return value


def _places(value: Any):
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def change_json(data: bytearray, rng: random.Random) -> None:
    """A file of one JSON value."""
    data[:] = _dumped(change(json.loads(data), rng), rng).encode(errors="replace")


def change_line(data: bytearray, rng: random.Random) -> None:
    """A file of one JSON value on each line."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    line = bytearray(lines[at])
    change_json(line, rng)
    data[:] = b"".join([*lines[:at], line + b"\n", *lines[at + 1 :]])


def _dumped(value: Any, rng: random.Random) -> str:
    text = json.dumps(value)
    if rng.random() < 0.08:  # put somewhere a value that no json.dumps would write
        return text.replace("1", rng.choice((nested(100_000), "1" * 5000, "1e9999")), 1)
    return text


# -- safetensors --------------------------------------------------------------------------------------


def change_layout(data: bytearray, rng: random.Random) -> None:
    """The header that safetensors itself reads: lengths, dtypes, shapes and offsets."""
    if rng.random() < 0.3:
        data[:8] = struct.pack("<Q", rng.choice((*SIZES, len(data), len(data) - 8, len(data) - 7)))
        return
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    what = rng.randrange(6)
    if what == 0:
        entry["dtype"] = rng.choice(
            ("F64", "F32", "I64", "U8", "BOOL", "BF16", "F8_E4M3", "C64", "X", "", None)
        )
    elif what == 1:
        entry["shape"] = rng.choice(
            ([10**9, 10**9], [2**63], [-1], [0], [], entry["shape"][::-1], [1] * 1000, "x")
        )
    elif what == 2:
        entry["data_offsets"] = rng.choice(([0, 2**62], [5, 0], [-1, 3], [0], [], [0, 0], None, [0.5, 1]))
    elif what == 3:
        header[rng.choice(TRICKS)] = header.pop(name)
    elif what == 4:
        header = change(header, rng)
    else:
        other = rng.choice(list(header))
        header[name], header[other] = header[other], header[name]
    text = _dumped(header, rng).encode()
    data[:] = struct.pack("<Q", len(text)) + text + data[8 + size :]


def reseal(data: bytearray, rng: random.Random) -> None:
    """Another header or other tensors, with the checksum that fits them: what a foe or another version writes."""
    (size,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    tensors = load(bytes(data))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        what = rng.random()
        if what < 0.6:
            metadata["header"] = _dumped(change(json.loads(metadata["header"]), rng), rng)
        elif what < 0.7:
            key = rng.choice(list(metadata))
            metadata[key] = rng.choice(
                ("", "x", "2", "-1", "9" * 5000, "replay", "world_model", nested(50_000))
            )
        elif tensors:
            _change_tensors(tensors, rng)
        try:
            json.loads(metadata["header"])
        except (ValueError, RecursionError):
            break
    if rng.random() < 0.9:
        metadata["checksum"] = _checksum(tensors, metadata)
    data[:] = save(tensors, metadata)


def _change_tensors(tensors: dict[str, torch.Tensor], rng: random.Random) -> None:
    name = rng.choice(list(tensors))
    tensor = tensors[name]
    what = rng.randrange(9)
    if what == 0:
        del tensors[name]
    elif what == 1:
        tensors[rng.choice((*TRICKS, "unknown", name + ".more", name.split(".")[0], ""))] = tensors.pop(name)
    elif what == 2:
        tensors[name] = (
            tensor.flatten()[:-1].clone() if tensor.numel() > 1 else torch.zeros(5, dtype=tensor.dtype)
        )
    elif what == 3:
        tensors[name] = tensor.unsqueeze(0).clone()
    elif what == 4:
        tensors[name] = tensor.to(
            rng.choice((torch.float64, torch.int64, torch.bool, torch.uint8, torch.bfloat16))
        )
    elif what == 5:
        tensors[name] = torch.zeros(0, dtype=tensor.dtype)
    elif what == 6 and tensor.is_floating_point():
        tensors[name] = torch.full_like(tensor, rng.choice((float("nan"), float("inf"), 1e38)))
    elif what == 7:
        tensors[name] = tensor.clone().fill_(0) if tensor.dtype == torch.bool else tensor * -1 - 1
    else:
        tensors["extra"] = torch.zeros(3)


def mutate(data: bytes, name: str, rng: random.Random) -> tuple[str, bytes]:
    """A damaged copy of a file.

    Args:
        data: its content.
        name: of the file; its suffix says what is in it.
        rng: of the damage.

    Returns:
        The kind of damage, and the new content.
    """
    found = bytearray(data)
    sealed = name.endswith(".safetensors")
    ways = [*BYTES, *([change_layout] * 3 + [reseal] * 8 if sealed else [])]
    ways += (
        [change_json] * 8 if name.endswith(".json") else [change_line] * 8 if name.endswith(".jsonl") else []
    )
    while bytes(found) == data:
        way = rng.choice(ways)
        try:
            way(found, rng)
        except (SafetensorError, OverflowError):
            found[:] = data
    return way.__name__, bytes(found)
