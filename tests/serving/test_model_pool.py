"""Many models in one process, over real folders of tiny models."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.core.machine import resident_bytes
from lmworks.models.adapters.base import add_adapter
from lmworks.models.adapters.files import save_adapter
from lmworks.models.adapters.lora import LoRAConfig
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.serving.memory_units import DoesNotFit, LoadFailed
from lmworks.serving.model_pool import ModelPool
from lmworks.serving.model_specs import (
    ModelSpec,
    PoolSpec,
    read_pool_spec,
    specs_of_references,
)

ASK = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0.0, "max_tokens": 6}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Model, tokenizer: Any) -> Path:
    """`a`, `b`: two chat models of one size; `x`, `y`: adapters on `a`; `bad`: a damaged one."""
    place = tmp_path_factory.mktemp("models")
    save_model(tiny_model, place / "a", tokenizer=tokenizer)
    other = Model(tiny_model.config).eval()
    other.reset_parameters(torch.Generator().manual_seed(9))
    save_model(other, place / "b", tokenizer=tokenizer)
    save_model(other, place / "bad", tokenizer=tokenizer)
    (place / "bad" / "model.safetensors").write_bytes(b"cut short")
    for seed, name in enumerate(("x", "y")):
        adapter = add_adapter(load_model(place / "a"), LoRAConfig(rank=2), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapter.parameters:
                parameter.normal_(std=0.5, generator=generator)
        save_adapter(adapter, place / name, base=str(place / "a"))
    return place


def spec(folders: Path, *names: str, budget: int | None = None, **settings: Any) -> PoolSpec:
    models = {name: ModelSpec(model=str(folders / name), max_batch=2) for name in names}
    if "a" in models and settings:
        models["a"] = ModelSpec(model=str(folders / "a"), max_batch=2, **settings)
    return PoolSpec(models=models, memory_budget=budget)


@pytest.fixture(scope="module")
def size(folders: Path) -> int:
    """Bytes of one of the two."""
    pool = ModelPool(spec(folders, "a"))
    described = pool.load("a")
    pool.close()
    return int(described["bytes"])


def states(pool: ModelPool) -> dict[str, str]:
    return {each["id"]: each["state"] for each in pool.describe()}


def test_models_come_when_they_are_asked_for_and_go_for_others(folders, size):
    pool = ModelPool(spec(folders, "a", "b", budget=size + size // 2))
    assert states(pool) == {"a": "unloaded", "b": "unloaded"} and not pool.loaded()
    first = pool.get("a").complete(ASK, **GREEDY)
    assert states(pool) == {"a": "ready", "b": "unloaded"}
    assert pool.get("b").complete(ASK, **GREEDY).text != first.text
    assert states(pool) == {"a": "unloaded", "b": "ready"} and list(pool.loaded()) == ["b"]
    assert pool.get("a").complete(ASK, **GREEDY).text == first.text
    assert pool.room.peak_bytes <= size + size // 2
    described = {each["id"]: each for each in pool.describe()}
    assert described["a"]["num_loads"] == 2 and described["a"]["tokens_per_s"] > 0
    assert described["a"]["bytes"] == size and described["a"]["context"] == 192
    assert described["a"]["kind"] == "chat" and described["b"]["requests"] == 0
    pool.close()
    assert not pool.loaded()


def test_what_was_told_before_loading_is_what_it_takes(folders, size):
    pool = ModelPool(spec(folders, "a"))
    entry = pool.entry("a")
    assert entry.measure() == size
    pool.close()


@pytest.mark.parametrize("how", ["early-exit=1", "draft"])
def test_what_guesses_tokens_counts_too(folders, size, how):
    guessing = how if "=" in how else f"{how}={folders / 'b'}"
    pool = ModelPool(spec(folders, "a", speculate=guessing))
    told = pool.entry("a").measure()
    assert told == pool.load("a")["bytes"] > size
    pool.close()


def test_a_smaller_cache_is_what_it_takes_and_what_the_engine_has(folders, size):
    settings = {"cache_tokens": 208, "prefix_tokens": 64, "turn_tokens": 32}
    pool = ModelPool(spec(folders, "a", **settings))
    pool.load("a")
    engine = pool.loaded()["a"].engine
    # 2 slots of 192 positions would be 24 pages: two layers, keys and values, 2 heads of 8.
    assert pool.entry("a").measure() == size - (24 - 13) * 2 * 2 * 16 * 16 * 4
    assert engine.statistics.num_pages == 13
    assert engine.prefixes.most_pages == 4 and engine._steps.turn_tokens == 32
    pool.close()


def test_one_that_does_not_fit_is_refused_in_one_line(folders, size):
    pool = ModelPool(spec(folders, "a", budget=size - 1))
    with pytest.raises(DoesNotFit, match=r"a needs .* and the memory budget is") as caught:
        pool.get("a").complete(ASK)
    assert "\n" not in str(caught.value) and not pool.loaded()
    pool.close()


def test_a_damaged_one_is_told_and_tried_again(folders, tmp_path, tiny_model, tokenizer):
    pool = ModelPool(spec(folders, "bad"))
    for attempt in (1, 2):
        with pytest.raises(LoadFailed, match=r"bad can't be loaded: .*cut short"):
            pool.get("bad").complete(ASK)
        assert pool.entry("bad").unit.attempts == attempt
    assert "cut short" in pool.describe()[0]["error"]
    save_model(tiny_model, folders / "bad", tokenizer=tokenizer)
    assert pool.get("bad").complete(ASK, **GREEDY).completion_tokens
    assert "error" not in pool.describe()[0]
    pool.close()
    (folders / "bad" / "model.safetensors").write_bytes(b"cut short")


def test_unloading_waits_for_an_answer_under_way(folders):
    pool = ModelPool(spec(folders, "a"))
    stream = pool.get("a").stream(ASK, temperature=0.0, max_tokens=40)
    next(stream)
    gone: list[Any] = []
    thread = threading.Thread(target=lambda: gone.append(pool.unload("a")))
    thread.start()
    time.sleep(0.1)
    assert not gone and pool.entry("a").unit.state == "ready"
    rest = list(stream)
    thread.join(10)
    assert rest[-1].finish_reason and gone[0]["state"] == "unloaded"
    pool.close()


def test_a_stream_that_is_dropped_or_cancelled_lets_its_model_go(folders):
    pool = ModelPool(spec(folders, "a"))
    unit = pool.entry("a").unit
    stream = pool.get("a").stream(ASK, **GREEDY)
    next(stream)
    assert unit.leases == 1
    stream.cancel()
    assert unit.leases == 0 and list(stream) == []
    other = pool.get("a").stream(ASK, **GREEDY)
    assert unit.leases == 1
    del other
    assert unit.leases == 0
    with pytest.raises(UserError, match="temperature"):
        pool.get("a").stream(ASK, temperature=-1.0)
    assert unit.leases == 0
    pool.close()


def test_streams_say_when_they_are_ready(folders):
    """As those of the model itself, so that the server reads them without a thread."""
    pool = ModelPool(spec(folders, "a"))
    stream = pool.get("a").stream(ASK, **GREEDY)
    woken = threading.Event()
    stream.on_ready(woken.set)
    assert woken.wait(10) and stream.ready()
    list(stream)
    assert stream.ready() and next(stream, None) is None
    cancelled = pool.get("a").stream(ASK, **GREEDY)
    cancelled.cancel()
    assert cancelled.ready() and list(cancelled) == []
    pool.close()


def test_settings_of_a_model_hold_where_a_request_says_nothing(folders):
    pool = ModelPool(spec(folders, "a", system="Be brief.", sampling=dict(GREEDY)))
    bare = ModelPool(spec(folders, "a"))
    system = [{"role": "system", "content": "Be brief."}, *ASK]
    assert pool.get("a").complete(ASK) == bare.get("a").complete(system, **GREEDY)
    own = [{"role": "system", "content": "Be long."}, *ASK]
    assert pool.get("a").complete(own) == bare.get("a").complete(own, **GREEDY)
    assert pool.get("a").complete(ASK, max_tokens=2).completion_tokens == 2
    pool.close()
    bare.close()


def test_vectors_and_scores_out_of_the_pool(folders):
    pool = ModelPool(spec(folders, "a"))
    with pool.get("a").embedder() as embedder:
        vectors = embedder.encode(["q", "one", "two"])
    with pool.get("a").reranker() as reranker:
        scores = reranker.score("q", ["one", "two"])
        np.testing.assert_allclose(scores, vectors[1:] @ vectors[0], atol=1e-6)
    pool.unload("a")
    with pool.get("a").embedder() as embedder:
        np.testing.assert_allclose(embedder.encode(["q", "one", "two"]), vectors, atol=1e-6)
    pool.close()


# --- over HTTP ---


@pytest.fixture
def served(folders: Path, size: int, live_server: Any) -> Any:
    models = spec(folders, "a", "b", "bad", budget=size + size // 2)
    pool = ModelPool(models, adapter_folder=folders)
    with live_server(pool) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        yield client
    pool.close()


def test_loading_and_unloading_over_http(served, size):
    assert [m["state"] for m in served.get("/v1/models").json()["data"]] == ["unloaded"] * 3
    loaded = served.post("/v1/models/load", json={"model": "a"}).json()
    assert loaded["state"] == "ready" and loaded["bytes"] == size and loaded["object"] == "model"
    assert served.get("/v1/models/a").json()["state"] == "ready"
    assert served.post("/v1/models/unload", json={"model": "a"}).json()["state"] == "unloaded"
    for body, status, code in [
        ({"model": "aa"}, 404, "model_not_found"),
        ({"model": "bad"}, 500, "model_load_failed"),
        ({"model": 3}, 400, "invalid_type"),
    ]:
        answer = served.post("/v1/models/load", json=body)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["code"] == code


def test_faults_of_loading_have_the_apis_shape(folders, size, live_server):
    pool = ModelPool(spec(folders, "a", budget=size // 2))
    with live_server(pool) as server, httpx.Client(base_url=server.url) as client:
        body = {"model": "a", "messages": ASK}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 507
        assert answer.json()["error"]["code"] == "model_too_large"
        assert "memory budget" in answer.json()["error"]["message"]
    pool.close()


def test_many_clients_of_two_models_that_do_not_fit_together(served):
    """Every request is answered, by the model that it named."""
    wanted = {}
    for name in ("a", "b"):
        body = {"model": name, "messages": ASK, **GREEDY}
        wanted[name] = served.post("/v1/chat/completions", json=body).json()["choices"]
    assert wanted["a"] != wanted["b"]
    wrong: list[str] = []

    def ask(name: str) -> None:
        body = {"model": name, "messages": ASK, **GREEDY}
        answer = served.post("/v1/chat/completions", json=body)
        if answer.status_code != 200 or answer.json()["choices"] != wanted[name]:
            wrong.append(answer.text)

    threads = [threading.Thread(target=ask, args=("ab"[i % 2],)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    room = served.get("/v1/models").json()["data"]
    assert sum(model["requests"] for model in room) == 0


def test_fixed_models_say_so(raw):
    answer = raw.post("/v1/models/load", json={"model": "tiny"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "fixed_models"


@pytest.mark.parametrize("path", ["..", "../a", "/etc", "", ".", "nothing", "a/../x", "x\x00"])
def test_clients_name_no_paths(served, path):
    body = {"lora_name": "new", "lora_path": path, "base_model_name": "a"}
    answer = served.post("/v1/load_lora_adapter", json=body)
    assert answer.status_code == 400, answer.text
    assert "new" not in [m["id"] for m in served.get("/v1/models").json()["data"]]


def test_links_out_of_the_folder_are_not_followed(folders, tmp_path):
    (tmp_path / "x").symlink_to(folders / "x")
    pool = ModelPool(spec(folders, "a"), adapter_folder=tmp_path)
    with pytest.raises(UserError, match="is no folder of"):
        pool.load_adapter("new", "x", "a")
    pool.close()


# --- embeddings and reranking ---


@pytest.fixture
def sdk(served: Any) -> Any:
    url = f"{served.base_url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as client:
        yield client


def test_the_openai_client_gets_vectors(sdk, folders):
    import lmworks

    wanted = lmworks.load_embedder(folders / "a").encode(["one", "two, which is longer"])
    for options in ({}, {"encoding_format": "float"}):
        found = sdk.embeddings.create(model="a", input=["one", "two, which is longer"], **options)
        vectors = np.array([each.embedding for each in found.data], dtype=np.float32)
        np.testing.assert_allclose(vectors, wanted, atol=1e-6)
        assert [each.index for each in found.data] == [0, 1]
        assert found.usage.prompt_tokens == found.usage.total_tokens == 3 + 20
    single = sdk.embeddings.create(model="a", input="one", dimensions=4)
    assert len(single.data[0].embedding) == 4
    assert np.linalg.norm(single.data[0].embedding) == pytest.approx(1, abs=1e-6)


def test_token_ids_are_inputs_too(sdk, tokenizer):
    ids = tokenizer.encode("one")
    text = sdk.embeddings.create(model="a", input="one").data[0].embedding
    for given in (ids, [ids]):
        found = sdk.embeddings.create(model="a", input=given)
        np.testing.assert_allclose(found.data[0].embedding, text, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [99999]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": "x" * 500}, "input"),
        ({"input": {"text": "x"}}, "input"),
        ({"dimensions": 33}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"prompt": "query"}, "prompt"),
    ],
)
def test_bad_requests_for_vectors_are_400(served, change, param):
    body = {"model": "a", "input": "x"} | change
    answer = served.post("/v1/embeddings", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert "\n" not in answer.json()["error"]["message"]


def test_too_long_is_told_or_cut(served):
    body = {"model": "a", "input": ["x", "y" * 500]}
    error = served.post("/v1/embeddings", json=body).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "input 1 has 500 tokens and the model reads 192" in error["message"]
    answer = served.post("/v1/embeddings", json=body | {"truncate": True})
    assert answer.status_code == 200 and answer.json()["usage"]["total_tokens"] == 193


def test_reranking(served):
    body = {"model": "a", "query": "q", "documents": ["one", {"text": "q"}, "q"], "top_n": 2}
    answer = served.post("/v1/rerank", json=body | {"return_documents": True}).json()
    assert [each["index"] for each in answer["results"]] == [1, 2]  # ties in their order
    assert answer["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-5)
    assert answer["results"][0]["document"] == {"text": "q"} and answer["method"] == "cosine"
    assert answer["usage"]["total_tokens"] == 1 + 3 + 1 + 1
    for change in ({"documents": []}, {"query": ""}, {"top_n": 0}, {"documents": [1]}):
        assert served.post("/v1/rerank", json=body | change).status_code == 400
    assert served.post("/v1/rerank", json=body | {"model": "zz"}).status_code == 404


def test_concurrent_requests_for_vectors(served):
    alone = {
        text: served.post("/v1/embeddings", json={"model": "a", "input": text}).json()["data"]
        for text in ("a", "bb", "c" * 30, "d" * 90)
    }
    wrong: list[str] = []

    def ask(text: str) -> None:
        found = served.post("/v1/embeddings", json={"model": "a", "input": text}).json()["data"]
        if not np.allclose(found[0]["embedding"], alone[text][0]["embedding"], atol=1e-6):
            wrong.append(text)

    threads = [threading.Thread(target=ask, args=(text,)) for text in alone for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


# --- what models a server has ---


def test_references_share_a_base(folders):
    a, b, x, y = (str(folders / name) for name in ("a", "b", "x", "y"))
    found = specs_of_references([("chat", a), ("x", x), ("y", y)], max_batch=3)
    assert found == {"chat": ModelSpec(model=a, max_batch=3, adapters={"x": x, "y": y})}
    by_name = specs_of_references([("chat", a), ("x", x)], base="chat")
    assert by_name["chat"].adapters == {"x": x}
    together = specs_of_references([("x", x), ("y", y), ("b", b)])
    assert list(together) == ["b", "a"] and together["a"].adapters == {"x": x, "y": y}
    alone = specs_of_references([("x", x)])
    assert alone == {"x": ModelSpec(model=x)}
    with pytest.raises(UserError, match="two models are called 'x'"):
        specs_of_references([("x", x), ("x", y)])
    with pytest.raises(UserError, match="two models are called 'a'"):
        ModelPool(PoolSpec(models={"a": ModelSpec(model=a, adapters={"a": x})}))


def test_a_file_of_models(tmp_path, folders):
    file = tmp_path / "models.yaml"
    file.write_text(
        "memory_budget: 1.5GB\nkeep_alive: 90s\nthreads: 3\nmodels:\n"
        "  small: {model: m, max_batch: 2, pinned: true, sampling: {temperature: 0.2}}\n"
        "  other: smollm2-135m\n"
    )
    (tmp_path / "m").mkdir()
    found = read_pool_spec(file)
    assert found.memory_budget == 1_500_000_000 and found.keep_alive_s == 90
    assert found.threads == 3
    small = found.models["small"]
    assert small.model == str(tmp_path / "m") and small.pinned
    assert small.sampling == {"temperature": 0.2} and found.models["other"].max_batch == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: [a]", "needs `models:`"),
        ("model: {a: b}", "needs `models:`"),
        ("models: {a: b}\nmemory: 3GB", "did you mean 'memory_budget'"),
        ("models: {a: b}\nmemory_budget: much", "write it as 8GB"),
        ("models: {a: {model: b, max_bach: 3}}", "max_batch"),
        ("models: {a: {max_batch: 3}}", "'model' is missing"),
        ("models: {a: {model: b, sampling: {temperature: -1}}}", "temperature"),
        ("models: {a: {model: b, pooling: best}}", "pooling"),
        ("models: {a: {model: b, keep_alive: soon}}", "write it as 30s"),
        ("models: {a: b}\nthreads: -1", "a number from 0"),
        ("models: {a: b}\nthreads: yes", "a number from 0"),
        ("models: {", "is no YAML"),
        ("!!python/object/apply:os.system ['true']", "is no YAML"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, words):
    file = tmp_path / "models.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_pool_spec(file)
    assert "\n" not in str(caught.value) and "models.yaml" in str(caught.value)


def test_a_pool_computes_with_its_threads():
    before = torch.get_num_threads()
    try:
        ModelPool(PoolSpec(models={}, threads=before + 1))
        assert torch.get_num_threads() == before + 1
        ModelPool(PoolSpec(models={}))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_memory_is_given_back(tmp_path, tokenizer):
    """Ten times loading and unloading 100 MB of weights: the process does not grow."""
    config = ModelConfig.uniform(
        vocab_size=264,
        hidden_size=512,
        num_hidden_layers=8,
        mixer=AttentionConfig(num_attention_heads=8, num_key_value_heads=8, head_dim=64),
        feed_forward=MLPConfig(intermediate_size=1536),
        max_position_embeddings=64,
    )
    model = Model(config).eval()
    model.reset_parameters(torch.Generator().manual_seed(0))
    save_model(model, tmp_path / "big", tokenizer=tokenizer)
    del model
    pool = ModelPool(PoolSpec(models={"big": ModelSpec(model=str(tmp_path / "big"), max_batch=1)}))
    held, left = [], []
    for _ in range(10):
        pool.get("big").complete(ASK, **GREEDY)
        held.append(resident_bytes())
        pool.unload("big")
        left.append(resident_bytes())
    size = pool.entry("big").unit.num_bytes
    pool.close()
    assert size > 100e6
    assert held[-1] - left[-1] > 0.9 * size
    assert left[-1] - left[1] < 0.1 * size
