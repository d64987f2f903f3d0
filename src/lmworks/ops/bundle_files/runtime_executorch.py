"""The model of this folder on ExecuTorch."""

import json
from pathlib import Path

import torch
from executorch.runtime import Runtime

FOLDER = Path(__file__).parent
SETTINGS = json.loads((FOLDER / "settings.json").read_text(encoding="utf-8"))


class Model:
    """Greedy continuation of token ids; what an earlier call has read is not read again."""

    def __init__(self) -> None:
        self.program = Runtime.get().load_program(str(FOLDER / SETTINGS["model"]))
        self.forward = self.program.load_method("forward")
        self.ids: list[int] = []

    def next_token(self, ids: list[int]) -> int:
        if len(ids) > SETTINGS["context_length"]:
            raise SystemExit(f"the bundle reads {SETTINGS['context_length']} tokens at most")
        known = 0
        while known < min(len(ids) - 1, len(self.ids)) and ids[known] == self.ids[known]:
            known += 1
        for at in range(known, len(ids)):  # what stands behind a position is not seen
            (logits,) = self.forward.execute([torch.tensor([[ids[at]]]), torch.tensor([at])])
        self.ids = list(ids)
        return int(logits[0, -1].argmax())
