"""Mutations of bytes, of JSON values and of safetensors files, all from one random generator."""

import copy
import json
import struct
from random import Random

ODD = [None, True, -1, 0, 1, 2, 2**31, 2**63, 10**30, -0.5, 1e-300, 1e200, float("nan"), float("inf"), "", "x",
       "a/../b", "x" * 3000, "\0", "<img src=x>", "NaN", "(\\w+\\.?)+!", "(?!a)", [], {}, [[]], [1, 2],
       {"a": 1}, {"": {}}, [[[[[[[[[[1]]]]]]]]]], ["x"] * 50]  # fmt: skip
"""Values in the place of others."""
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "C64": 8, "U16": 2}
"""Types of tensors and their size in bytes."""
SIZES = (0, 1, 2, 3, 4, 8, 16, 32, 33, 64, 288, 2000, 30_000)
PARTS = ("lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "dora_scale", "diff", "hada_w1_a",
         "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w2", "lokr_w1_a",
         "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "hra_u", "oft_R.weight", "oft_blocks", "rescale", "on_input",
         "weight", "a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight", "bias",
         "lora_magnitude_vector")  # fmt: skip
"""Ends of keys."""
MOST = 200_000
"""Bytes of data that a mutated tensor has at most, so that files stay small."""

Tensors = dict[str, tuple[str, list[int], bytes]]
"""Key -> (type, shape, data)."""


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Change, insert, delete, repeat or cut off some bytes."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 5, 30))):
        place, length = random.randrange(len(changed) + 1), random.choice((1, 2, 4, 8, 100))
        match random.randrange(6):
            case 0:
                changed[place : place + 1] = bytes([random.randrange(256)])
            case 1:
                changed[place : place + length] = random.choice((b"\0", b"\xff", b"\x7f", b"9")) * length
            case 2:
                changed[place:place] = random.randbytes(length)
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = changed[place : place + length] * random.choice((1, 2, 50))
            case _:
                if random.random() < 0.3:
                    del changed[place:]
    return bytes(changed)


def mutate_json(value, random: Random):
    """Replace, delete, rename or add some values of a JSON value."""
    root = [copy.deepcopy(value)]
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        places = list(_places(root))
        parent, key = random.choice(places)
        match random.randrange(8):
            case 0 if parent is not root:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[random.choice([*"ab", "x" * 600, f"{key}2", ""])] = parent.pop(key)
            case 2 if isinstance(parent, dict):
                parent[random.choice(("extra", "x" * 600))] = random.choice(ODD)
            case 3:
                other, its_key = random.choice(places)
                parent[key] = copy.deepcopy(other[its_key])
            case 4:
                parent[key] = [copy.deepcopy(parent[key])] * random.choice((0, 1, 2, 40))
            case _:
                parent[key] = copy.deepcopy(random.choice(ODD))
    return root[0]


def _places(parent):
    """Yield (parent, key) of all values within."""
    for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
        yield parent, key
        if isinstance(parent[key], dict | list):
            yield from _places(parent[key])


def mutate_text(text: str, random: Random) -> str:
    """Mutate JSON as a value, or as bytes; other text as bytes."""
    try:
        value = json.loads(text)
    except ValueError:
        return mutate_bytes(text.encode(), random).decode(errors="replace")
    if random.random() < 0.8:
        return json.dumps(mutate_json(value, random))
    return mutate_bytes(text.encode(), random).decode(errors="replace")


def split(data: bytes) -> tuple[Tensors, dict[str, str]]:
    """Read a safetensors file as (tensors, metadata)."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    spans = {key: [start + offset for offset in entry["data_offsets"]] for key, entry in header.items()}
    tensors = {key: (entry["dtype"], entry["shape"], data[slice(*spans[key])]) for key, entry in header.items()}
    return tensors, metadata


def join(tensors: Tensors, metadata: dict[str, str]) -> bytes:
    """Write a safetensors file, however odd its tensors are."""
    header, place = {"__metadata__": metadata} if metadata else {}, 0
    for key, (dtype, shape, data) in tensors.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + len(data)]}
        place += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(data for *_, data in tensors.values())


def mutate_adapter(data: bytes, random: Random) -> bytes:
    """Mutate the bytes, the header, the metadata, or the shapes, types, names and values of tensors."""
    chance = random.random()
    if chance < 0.15:
        return mutate_bytes(data, random)
    tensors, metadata = split(data)
    if chance < 0.45 and metadata:
        key = max(metadata, key=lambda key: len(metadata[key]) * random.random())
        metadata[key] = mutate_text(metadata[key], random)
        return join(tensors, metadata)
    if chance < 0.55:
        start = 8 + int.from_bytes(data[:8], "little")
        header = mutate_text(data[8:start].decode(), random).encode()
        return struct.pack("<Q", len(header)) + header + data[start:]
    for _ in range(random.choice((1, 1, 2, 6))):
        _mutate_tensor(tensors, random)
    return join(tensors, metadata)


def _mutate_tensor(tensors: Tensors, random: Random) -> None:
    if not tensors:
        return
    key = random.choice(list(tensors))
    dtype, shape, data = tensors[key]
    match random.randrange(7):
        case 0:
            del tensors[key]
        case 1:
            layer = key.split(".")[0] if "." in key else key
            tensors[random.choice((f"{layer}.{random.choice(PARTS)}", key + "x", "<" * 400, ""))] = tensors.pop(key)
        case 2:
            layer = key.rpartition(".lora_")[0] or key.rpartition(".")[0]
            tensors[f"{layer}.{random.choice(PARTS)}"] = _filled(dtype, _odd_shape(shape, random), random)
        case 3:
            tensors[key] = _filled(random.choice(list(DTYPES)), shape, random)
        case 4:
            values = bytearray(data)
            values[: len(values) // 2] = random.choice((b"\xff", b"\x7f", b"\0")) * (len(values) // 2)
            tensors[key] = dtype, shape, bytes(values)
        case _:
            tensors[key] = _filled(dtype, _odd_shape(shape, random), random)


def _odd_shape(shape: list[int], random: Random) -> list[int]:
    shape = list(shape)
    match random.randrange(5):
        case 0:
            return shape[::-1]
        case 1:
            return [*shape, *random.choice(([1], [1, 1], [3, 3], [1] * 70))]
        case 2:
            return shape[: random.randrange(len(shape) + 1)]
        case _:
            return [random.choice((size, *SIZES)) for size in shape] or [random.choice(SIZES)]


def _filled(dtype: str, shape: list[int], random: Random) -> tuple[str, list[int], bytes]:
    """A tensor of small random values; a smaller one if it were too large."""
    size = DTYPES.get(dtype, 4)
    for size_of_dimension in shape:
        size *= size_of_dimension
    if size > MOST:
        return _filled(dtype, [min(side, 20) for side in shape[:3]], random)
    return dtype, shape, (random.randbytes(4) * (size // 4 + 1))[:size]
