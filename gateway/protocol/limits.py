"""What one request may ask of the decoder; the settings of the same names say it for a gateway."""

from __future__ import annotations

import msgspec

__all__ = ("Limits",)


class Limits(msgspec.Struct, frozen=True):
    """Bounds of a request, each refused beyond with 400.

    Parameters
    ----------
    max_json_depth : int
        Nesting of arrays and objects.
    max_json_elements : int
        Of one input in JSON.
    max_tensors : int
        Inputs; requested outputs likewise.
    max_rank, max_dimension : int
        Axes of a tensor, and the length of one.
    max_elements : int
        Of one tensor; an empty axis counts as one of length 1.
    max_id_length : int
        Characters.
    """

    max_json_depth: int = 100
    max_json_elements: int = 4_000_000
    max_tensors: int = 64
    max_rank: int = 8
    max_dimension: int = 2**31 - 1
    max_elements: int = 2**26
    max_id_length: int = 128
