# SPDX-License-Identifier: MIT
"""Reads a safetensors file: 8 bytes of length, a JSON header, the data."""

import json

import torch

DTYPES = {"F32": (torch.float32, 4), "I64": (torch.int64, 8)}


def load(path):
    """The tensors of a file, by name."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = bytearray(file.read())
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, size = DTYPES[entry["dtype"]]
        begin, end = entry["data_offsets"]
        flat = torch.frombuffer(data, dtype=dtype, offset=begin, count=(end - begin) // size)
        tensors[name] = flat.reshape(entry["shape"]).clone()
    return tensors
