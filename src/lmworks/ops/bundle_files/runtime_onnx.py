"""The model of this folder on ONNX Runtime."""

import json
from pathlib import Path

import numpy as np
import onnxruntime

FOLDER = Path(__file__).parent
SETTINGS = json.loads((FOLDER / "settings.json").read_text(encoding="utf-8"))


class Model:
    """Greedy continuation of token ids; what an earlier call has read is not read again."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = SETTINGS["threads"]
        options.enable_cpu_mem_arena = False  # it keeps what the longest prompt needed
        self.session = onnxruntime.InferenceSession(
            str(FOLDER / SETTINGS["model"]), options, providers=["CPUExecutionProvider"]
        )
        self.past_inputs = [i for i in self.session.get_inputs() if i.name != "input_ids"]
        self.ids: list[int] = []
        self.past = [np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in self.past_inputs]

    def next_token(self, ids: list[int]) -> int:
        if len(ids) > SETTINGS["context_length"]:
            raise SystemExit(f"the bundle reads {SETTINGS['context_length']} tokens at most")
        known = 0
        while known < min(len(ids) - 1, len(self.ids)) and ids[known] == self.ids[known]:
            known += 1
        self.past = [part[:, :, :known] for part in self.past]
        while known < len(ids):  # a long prompt in pieces, so that memory stays small
            piece = ids[known : known + 32]
            feed = {"input_ids": np.array([piece], np.int64)}
            feed |= {i.name: part for i, part in zip(self.past_inputs, self.past)}
            logits, *self.past = self.session.run(None, feed)
            known += len(piece)
        self.ids = list(ids)
        return int(logits[0, -1].argmax())
