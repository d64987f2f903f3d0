"""llama.cpp's own tokenizer over one GGUF file, out of the PyPI package xllamacpp.

The shared library in the package has llama.cpp's C interface beside its Python one. Only the
vocabulary is loaded, so a file of any size, or one without tensors, opens at once; and text goes
in as bytes, so broken UTF-8 does too.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_VOCAB_ONLY = 72  # where llama_model_params has it, behind pointers and enumerations
_FLAGS = b"\0\0\1\0\0\0"  # vocab_only and its neighbours, as they are by default


class _Params(ctypes.Structure):
    """llama_model_params and room for what later versions add; passed by value."""

    _fields_ = [("data", ctypes.c_ubyte * 256)]


def library() -> Any:
    """The loaded library. Raises: ImportError when it isn't there or has another layout."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise ImportError("pip install xllamacpp, to check llama.cpp")
    loaded = ctypes.CDLL(str(next(Path(found.origin).parent.glob("xllamacpp*.so"))))
    loaded.llama_model_default_params.restype = _Params
    for name in ("llama_model_load_from_file", "llama_model_get_vocab"):
        getattr(loaded, name).restype = ctypes.c_void_p
    loaded.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _Params]
    loaded.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
    loaded.llama_model_free.argtypes = [ctypes.c_void_p]
    integers = [ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32]
    loaded.llama_tokenize.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        *integers,
        ctypes.c_bool,
        ctypes.c_bool,
    ]
    flags = bytes(loaded.llama_model_default_params().data)[_VOCAB_ONLY:][: len(_FLAGS)]
    if flags != _FLAGS:
        raise ImportError("this xllamacpp has parameters of another layout")
    return loaded


class LlamaVocabulary:
    """The vocabulary of a GGUF file. Raises: ValueError when llama.cpp refuses it."""

    def __init__(self, path: Path) -> None:
        self._library = library()
        params = self._library.llama_model_default_params()
        params.data[_VOCAB_ONLY] = 1
        with _quiet():
            self._model = self._library.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ValueError(f"llama.cpp can't load {path}")
        self._vocab = self._library.llama_model_get_vocab(self._model)

    def encode(
        self, text: str | bytes, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Ids of the text."""
        data = text.encode() if isinstance(text, str) else text
        room = len(data) + 16
        ids = (ctypes.c_int32 * room)()
        count = self._library.llama_tokenize(
            self._vocab, data, len(data), ids, room, add_special, parse_special
        )
        if count < 0:
            raise ValueError(f"{-count} ids for {len(data)} bytes")
        return ids[:count]

    def close(self) -> None:
        """Free the memory."""
        self._library.llama_model_free(self._model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """llama.cpp logs to the process's standard error."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
