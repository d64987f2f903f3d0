"""Adapters of one base, asked for by single requests: as if each were served alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.inference.engine import Engine
from lmworks.inference.sampling import Sampling
from lmworks.models.adapters.base import AdapterConfig, add_adapter
from lmworks.models.adapters.files import load_adapter, save_adapter
from lmworks.models.adapters.lora import LoRAConfig
from lmworks.models.adapters.prefix import PrefixConfig
from lmworks.models.adapters.shared import SharedAdapters
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.serving.model_pool import ModelPool
from lmworks.serving.model_specs import ModelSpec, PoolSpec

KINDS: dict[str, AdapterConfig] = {
    "x": LoRAConfig(rank=2),
    "y": LoRAConfig(rank=3, targets=("q_proj", "v_proj", "down_proj")),
    "p": PrefixConfig(num_virtual_tokens=3),
}
PROMPTS = ("one two three four five six", "a", "what is this?")
GREEDY = Sampling(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Model, tokenizer: Any) -> Path:
    place = tmp_path_factory.mktemp("adapters")
    save_model(tiny_model, place / "base", tokenizer=tokenizer)
    for seed, (name, config) in enumerate(KINDS.items()):
        adapter = add_adapter(load_model(place / "base"), config, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapter.parameters:
                parameter.normal_(std=0.4, generator=generator)
        save_adapter(adapter, place / name, base=str(place / "base"))
    return place


@pytest.fixture(scope="module")
def alone(place: Path, tokenizer: Any) -> dict[tuple[str, str], list[int]]:
    """Greedy tokens of each adapter where it is the model's only one; a LoRA merged."""
    found = {}
    for name in ("", *KINDS):
        model = load_model(place / "base")
        if name:
            adapter = load_adapter(model, place / name)
            if name in "xy":
                adapter.merge()
        with Engine(model, tokenizer) as engine:
            for prompt in PROMPTS:
                stream = engine.submit(tokenizer.encode(prompt), GREEDY)
                found[name, prompt] = [event.token_id for event in stream]
    return found


@pytest.fixture
def engine(place: Path, tokenizer: Any) -> Any:
    model = load_model(place / "base")
    shared = SharedAdapters(model)
    for name in KINDS:
        shared.load(name, place / name)
    with Engine(model, tokenizer, max_batch=12, adapters=shared) as engine:
        yield engine


def test_requests_of_several_adapters_run_together(engine, tokenizer, alone):
    for _ in range(2):  # the second time beginnings are found in the tree of prefixes
        streams = {
            (name, prompt): engine.submit(tokenizer.encode(prompt), GREEDY, adapter=name)
            for name in ("", *KINDS)
            for prompt in PROMPTS
        }
        for key, stream in streams.items():
            assert [event.token_id for event in stream] == alone[key], key
    assert len({tuple(ids) for (_, prompt), ids in alone.items() if prompt == PROMPTS[0]}) == 4
    counts, total = engine.statistics.batch_size.snapshot()
    assert total / counts[-1] > 2  # not one adapter after the other


def test_a_beginning_is_not_shared_between_adapters(engine, tokenizer, alone):
    prompt = "the same long beginning of every request, well over sixteen tokens: "
    first: dict[str, list[int]] = {}
    for name in ("x", "y", "", "x", "y", ""):
        stream = engine.submit(tokenizer.encode(prompt), GREEDY, adapter=name)
        found = [event.token_id for event in stream]
        assert (stream.cached_tokens > 0) == (name in first)
        assert first.setdefault(name, found) == found


def test_an_adapter_that_is_not_there_is_told(engine, tokenizer):
    with pytest.raises(UserError, match="no adapter 'zz'"):
        engine.submit(tokenizer.encode("a"), GREEDY, adapter="zz")


# --- out of the pool, over HTTP ---


@pytest.fixture
def pool(place: Path) -> Any:
    adapters = {"x": str(place / "x"), "p": str(place / "p")}
    base = ModelSpec(model=str(place / "base"), adapters=adapters)
    pool = ModelPool(PoolSpec(models={"base": base}), adapter_folder=place)
    yield pool
    pool.close()


@pytest.fixture
def served(pool: Any, live_server: Any) -> Any:
    with live_server(pool) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def ask(client: httpx.Client, model: str, prompt: str) -> Any:
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 12}
    return client.post("/v1/completions", json=body)


def text(ids: list[int], tokenizer: Any) -> str:
    return str(tokenizer.decode([i for i in ids if i != tokenizer.eos_token_id]))


def test_an_adapter_is_a_model_of_its_own_name(served, pool, tokenizer, alone):
    names = {"base": "", "x": "x", "base:x": "x", "p": "p"}
    wrong: list[str] = []

    def one(model: str, prompt: str) -> None:
        answer = ask(served, model, prompt).json()["choices"][0]["text"]
        if answer != text(alone[names[model], prompt], tokenizer):
            wrong.append(f"{model}: {answer}")

    threads = [
        threading.Thread(target=one, args=(model, prompt)) for model in names for prompt in PROMPTS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    described = {each["id"]: each for each in served.get("/v1/models").json()["data"]}
    assert described["x"]["parent"] == "base" and described["x"]["state"] == "ready"
    assert 0 < described["x"]["bytes"] < described["base"]["bytes"]
    assert described["base"]["num_loads"] == 1
    for wrong_name in ("x:base", "base:y", "base:", ":x"):
        assert ask(served, wrong_name, "a").status_code == 404


def test_adapters_come_and_go_while_the_server_runs(served, pool, tokenizer, alone):
    prompt = PROMPTS[0]
    body = {"lora_name": "new", "lora_path": "y"}
    described = served.post("/v1/load_lora_adapter", json=body).json()
    assert described["state"] == "ready" and described["parent"] == "base"
    assert ask(served, "new", prompt).json()["choices"][0]["text"] == text(
        alone["y", prompt], tokenizer
    )
    assert served.post("/v1/load_lora_adapter", json=body).status_code == 400  # taken
    assert served.post("/v1/unload_lora_adapter", json={"lora_name": "new"}).status_code == 200
    assert ask(served, "new", prompt).status_code == 404
    # Another adapter under the same name gets nothing of what was kept for the former one.
    body["lora_path"] = "x"
    assert served.post("/v1/load_lora_adapter", json=body).status_code == 200
    answer = ask(served, "new", prompt).json()
    assert answer["choices"][0]["text"] == text(alone["x", prompt], tokenizer)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    again = ask(served, "new", prompt).json()["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] > 0
    bad = {"lora_name": "other", "lora_path": "base"}  # a folder, but no adapter
    answer = served.post("/v1/load_lora_adapter", json=bad)
    assert answer.status_code == 500 and "adapter" in answer.json()["error"]["message"]
    assert "other" not in [each["id"] for each in served.get("/v1/models").json()["data"]]
    assert served.post("/v1/unload_lora_adapter", json={"lora_name": "base"}).status_code == 400


def test_an_adapter_goes_when_its_last_answer_has_ended(pool):
    stream = pool.get("x").stream_text("a", temperature=0.0, max_tokens=60)
    next(stream)
    gone = []
    thread = threading.Thread(target=lambda: gone.append(pool.unload("base")))
    thread.start()
    thread.join(0.1)
    assert not gone
    rest = list(stream)
    thread.join(10)
    assert rest[-1].finish_reason and gone
    assert {each["state"] for each in pool.describe()} == {"unloaded"}


def test_vectors_of_an_adapter(pool):
    vectors = {}
    for name in ("base", "x"):
        with pool.get(name).embedder() as embedder:
            vectors[name] = embedder.encode("a text")
    assert abs(vectors["base"] - vectors["x"]).max() > 0.01
    pool.unload("x")
    with pool.get("x").embedder() as embedder:
        assert abs(vectors["x"] - embedder.encode("a text")).max() < 1e-6
