"""Names of the classes of an output, as the classification extension answers them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from gateway.repository.policy import PolicyError

__all__ = ("MAX_LABEL_BYTES", "read_labels")

MAX_LABEL_BYTES = 2**20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def read_labels(folder: Path, files: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Read label files: UTF-8, one label a line, line n for index n from 0.

    Parameters
    ----------
    folder : Path
        The model's; the files lie beside its `model.toml`.
    files : mapping of output name to file name

    Raises
    ------
    PolicyError
        A file cannot be read, is too large, or its name leads elsewhere.
    """
    labels = {}
    for output, name in files.items():
        if _NAME.fullmatch(name) is None:
            raise PolicyError(f"{folder / 'model.toml'}: labels.{output} = {name!r}: expected the name of a file here")
        try:
            with (folder / name).open("rb") as file:
                content = file.read(MAX_LABEL_BYTES + 1)
            if len(content) > MAX_LABEL_BYTES:
                raise PolicyError(f"{folder / name}: more than {MAX_LABEL_BYTES} bytes of labels")
            labels[output] = tuple(content.decode().splitlines())
        except OSError as error:
            raise PolicyError(f"cannot read {folder / name}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise PolicyError(f"{folder / name}: labels must be UTF-8, one a line") from None
    return labels
