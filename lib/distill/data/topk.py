"""What a teacher says of a token beside the token: ids, their log-probabilities and the logsumexp, packed.

Kinds: `top`, the k likeliest ids, best first; `sampled`, k ids drawn with replacement from the teacher's own
distribution (Sparse Logit Sampling, arXiv 2503.16870), an id as often as it was drawn. A token of either takes
2k bytes of ids (a quarter or half of k more where the vocabulary is over 65,536), 2k of float16, 4 of float32.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = ("top", "sampled")
LOGSUMEXP = "logsumexp"


def columns_of(kind: str) -> tuple[str, str]:
    """The names of a kind's ids and of their log-probabilities."""
    return f"{kind}_ids", f"{kind}_logprobs"


def told_columns(widths: Mapping[str, int]) -> dict[str, int]:
    """The columns for so many of each kind, with their width; nothing for none. The logsumexp has width 0."""
    told = {column: k for kind, k in widths.items() if k for column in columns_of(kind)}
    return {LOGSUMEXP: 0} | told if told else {}


class Told(NamedTuple):
    """How many logits of each kind a token has, and of how many ids they are."""

    top: int
    sampled: int
    vocabulary: int

    @property
    def columns(self) -> dict[str, int]:
        """`told_columns` of it."""
        return told_columns({kind: getattr(self, kind) for kind in KINDS})

    @property
    def widths(self) -> dict[str, int]:
        """Bytes of a token in each column."""
        bytes_of = {True: lambda k: id_bytes(k, self.vocabulary), False: lambda k: 2 * k}
        return {name: bytes_of[name.endswith("ids")](k) if k else 4 for name, k in self.columns.items()}

    def fields(self) -> "list[pa.Field]":
        """The columns as Parquet has them: a list a row, of fixed bytes a token."""
        import pyarrow as pa

        kinds = {name: pa.float32() if name == LOGSUMEXP else pa.binary(width) for name, width in self.widths.items()}
        return [pa.field(name, pa.list_(kind)) for name, kind in kinds.items()]


def id_bytes(k: int, vocabulary: int) -> int:
    """Bytes that k ids take: 16 bits each, and those above 16 packed behind them. k 32: 64, 68 from 65,537 ids on."""
    return 2 * k + -(-k * _high(vocabulary) // 8)


def token_bytes(k: int, vocabulary: int) -> int:
    """Bytes of one token and one kind, the logsumexp included: 132 for k 32, at most 140 up to 262,144 ids."""
    return id_bytes(k, vocabulary) + 2 * k + 4


def pack_ids(ids: Int[np.ndarray, "T k"], vocabulary: int) -> UInt8[np.ndarray, "T W"]:
    """Ids as bytes, little-endian; see `id_bytes`."""
    low = np.ascontiguousarray(ids, "<u4").astype("<u2").view(np.uint8)
    if not (high := _high(vocabulary)):
        return low
    above = (np.asarray(ids)[:, :, None] >> (16 + np.arange(high))) & 1
    return np.concatenate([low, np.packbits(above.astype(np.uint8).reshape(len(ids), -1), axis=1)], axis=1)


def unpack_ids(packed: UInt8[np.ndarray, "T W"], k: int, vocabulary: int) -> Int[np.ndarray, "T k"]:
    """Ids, uint16 where that holds all of the vocabulary, else int32."""
    low = np.ascontiguousarray(packed[:, : 2 * k]).view("<u2")
    if not (high := _high(vocabulary)):
        return low
    bits = np.unpackbits(np.ascontiguousarray(packed[:, 2 * k :]), axis=1, count=k * high)
    above = bits.reshape(len(packed), k, high).astype(np.int32)
    return low.astype(np.int32) + (above << (16 + np.arange(high, dtype=np.int32))).sum(-1, dtype=np.int32)


def pack_logprobs(logprobs: Float[np.ndarray, "T k"]) -> UInt8[np.ndarray, "T W"]:
    """Log-probabilities as float16: none is off by more than 2⁻¹¹ of itself."""
    return np.ascontiguousarray(logprobs, "<f2").view(np.uint8)


def packed(told: Mapping[str, Sequence], vocabulary: int) -> dict[str, UInt8[np.ndarray, "T W"]]:
    """The columns of one sample: `told` has for each the tokens' values, as many as were asked for."""
    out = {}
    for name, values in told.items():
        if name == LOGSUMEXP:
            out[name] = np.asarray(values, "<f4").reshape(-1, 1).view(np.uint8)
        else:
            table = np.stack(values) if len(values) else np.zeros((0, 1), np.int32)
            out[name] = pack_ids(table.astype(np.int64), vocabulary) if name.endswith("ids") else pack_logprobs(table)
    return out


def as_text(columns: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Packed columns in base64, as they go over HTTP and into a journal."""
    return {name: base64.b64encode(value.tobytes()).decode() for name, value in columns.items()}


def from_text(columns: Mapping[str, str], tokens: int) -> dict[str, UInt8[np.ndarray, "T W"]]:
    """`as_text` undone; a ValueError where it does not come to so many tokens."""
    out = {}
    for name, text in columns.items():
        values = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
        if values.size % max(tokens, 1) or bool(values.size) != bool(tokens):
            raise ValueError(f"{name} has {values.size} bytes for {tokens} tokens")
        out[name] = values.reshape(tokens, -1)
    return out


def _high(vocabulary: int) -> int:
    """Bits of an id above the sixteenth."""
    return max(0, (vocabulary - 1).bit_length() - 16)
