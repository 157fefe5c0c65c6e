"""AutoAWQ's and GPTQ's layouts of integer weights, word by word in numpy; shares no code with octavo.

Written from the tools' documentation of their packing: AutoAWQ's GEMM kernels take eight columns to a word in the
order 0 2 4 6 1 3 5 7; GPTQ takes the rows one after the other, as one string of bits, and version 1 stores zero points
less 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
Words = NDArray[np.int32]

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def awq_words(codes: Codes) -> Words:
    """Pack 4-bit codes [rows, columns] to int32 [rows, columns / 8]."""
    rows, columns = codes.shape
    words = np.zeros((rows, columns // 8), np.uint64)
    for word in range(columns // 8):
        for place, column in enumerate(_AWQ_ORDER):
            words[:, word] |= codes[:, 8 * word + column].astype(np.uint64) << np.uint64(4 * place)
    return words.astype(np.uint32).view(np.int32)


def bit_string_words(codes: Codes, bits: int) -> Words:
    """Pack codes [rows, columns] along the columns: code j fills bits [j · bits, (j + 1) · bits) of its row."""
    rows, columns = codes.shape
    strings = np.zeros((rows, columns * bits), np.uint8)
    for column in range(columns):
        for bit in range(bits):
            strings[:, column * bits + bit] = (codes[:, column] >> bit) & 1
    return np.packbits(strings, axis=1, bitorder="little").view("<i4")


def gptq_tensors(codes: Codes, zeros: Codes, bits: int, version: int) -> tuple[Words, Words]:
    """Return `qweight` and `qzeros` of codes [out, in] and zero points [out, groups]."""
    stored = (zeros - (1 if version == 1 else 0)) % 2**bits
    return bit_string_words(codes, bits).T.copy(), bit_string_words(stored.T, bits)


def awq_tensors(codes: Codes, zeros: Codes) -> tuple[Words, Words]:
    """Return `qweight` and `qzeros` of codes [out, in] and zero points [out, groups]."""
    return awq_words(codes.T), awq_words(zeros.T)


def values(codes: Codes, zeros: Codes, scales: NDArray[np.float16], group: int) -> NDArray[np.float16]:
    """Return what codes [out, in] stand for, each product rounded to fp16 once."""
    centred = (codes - np.repeat(zeros, group, 1)).astype(np.float32)
    return (centred * np.repeat(scales.astype(np.float32), group, 1)).astype(np.float16)
