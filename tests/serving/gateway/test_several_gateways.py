"""Processes: two gateways over one Redis, one that is killed, one that is told to end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import random
import signal
import subprocess
import sys

import httpx
import pytest
import yaml
from tests.serving.gateway.live import LiveGateway, ask, config_over

from lmworks.serving.gateway.config import load_config
from lmworks.serving.gateway.keys import new_key
from lmworks.serving.gateway.ledger import LocalLedger, Used, new_ticket
from lmworks.serving.gateway.limits import Cost, Limits, Refused
from lmworks.serving.gateway.store import Store


def parallel(work, count, workers=50):
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, range(count)))


@pytest.fixture
def pair(fake, tmp_path, redis_url):
    """Two gateways with stores of their own and one Redis; and the back end."""
    back = fake()
    configs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        configs.append(
            config_over(tmp_path / name, {"a": back}, redis=redis_url, bytes_per_token=1)
        )
    # Gateways that share keys share the pepper too.
    secret = tmp_path / "one" / "gateway.secret"
    with LiveGateway(configs[0]) as first:
        (tmp_path / "two" / "gateway.secret").write_text(secret.read_text())
        with LiveGateway(configs[1]) as second:
            yield first, second, back


def test_requests_are_exact_over_two_gateways(pair):
    first, second, back = pair
    key = first.key(requests_per_day=40)
    with first.client(key) as one, second.client(key) as two:
        answers = parallel(lambda i: ask((one, two)[i % 2]), 120)
        statuses = [answer.status_code for answer in answers]
        assert (statuses.count(200), statuses.count(429)) == (40, 80)
        assert two.get("/v1/key").json()["left"] == {"requests": 0}
    assert len(back.asked()) == 40


def test_a_bucket_is_exact_over_two_gateways(pair):
    first, second, _ = pair
    key = second.key(requests_per_minute=1, burst=30)
    with first.client(key) as one, second.client(key) as two:
        answers = parallel(lambda i: ask((one, two)[i % 2]), 100)
    assert sum(answer.status_code == 200 for answer in answers) == 30


def test_tokens_stay_within_the_quota_over_two_gateways(pair):
    first, second, back = pair
    key = first.key(tokens_per_day=400, tokens_per_minute=10_000)
    with first.client(key) as one, second.client(key) as two:
        for _ in range(4):
            parallel(lambda i: ask((one, two)[i % 2], max_tokens=5, stream=i % 3 == 0), 50)
        while ask(two, max_tokens=5).status_code == 200:
            pass
        left = one.get("/v1/key").json()["left"]["tokens"]
    used = 12 * len(back.asked())
    assert used == 400 - left <= 400 and left < 18
    assert sum(row["requests"] for row in first_usage(first)) == len(back.asked())


def first_usage(live):
    with live.client(live.key(name="root", admin=True)) as client:
        return client.get("/admin/usage").json()["usage"]


def test_a_revocation_holds_at_the_other_gateway_at_once(pair):
    first, second, _ = pair
    key = first.key()
    admin = second.key(name="root", admin=True)
    with first.client(key) as one, second.client(admin) as office:
        assert ask(one).status_code == 200
        office.post(f"/admin/keys/{key.split('_')[1]}/revoke")
        assert ask(one).status_code == 401


def test_without_redis_nobody_is_let_in_uncounted(fake, tmp_path):
    pytest.importorskip("redis")
    config = config_over(tmp_path, {"a": fake()}, redis="redis://127.0.0.1:1/0")
    from lmworks.serving.gateway.redis_ledger import RedisLedger, StoreUnavailable

    async def find():
        ledger = RedisLedger(config.settings.redis)
        try:
            await ledger.find_key("0" * 12)
        finally:
            await ledger.close()

    with pytest.raises(StoreUnavailable, match="can't be reached") as caught:
        asyncio.run(find())
    assert caught.value.status == 503


def _ticket(number, key, limits, tokens=10):
    return new_ticket(str(number), key, "chat", Cost(1, tokens, 0), 4, limits)


def test_both_ledgers_let_in_the_same_requests(redis_url, tmp_path):
    """Random reservations and settlements: memory and Redis say yes and no alike."""
    from lmworks.serving.gateway.redis_ledger import RedisLedger

    limits = Limits(requests_per_day=60, requests_per_month=70, tokens_per_day=900)
    _, key = new_key(b"0123456789abcdef", "x")

    async def play(ledger, seed):
        chance, told, running = random.Random(seed), [], []
        for number in range(150):
            ticket = _ticket(number, key, limits, chance.randrange(1, 40))
            try:
                await ledger.admit(ticket)
                running.append(ticket)
                told.append(True)
            except Refused as refusal:
                told.append(str(refusal))
            if running and chance.random() < 0.7:
                done = running.pop(chance.randrange(len(running)))
                cost = Cost(chance.randrange(2), chance.randrange(done.reserved.tokens + 5), 0)
                used = Used(key_id=key.id, model="chat", prompt_tokens=cost.tokens)
                await ledger.settle(done, cost, used.dated(done.started_s), [])
        left = await ledger.left(key, limits)
        usage = await ledger.usage("2026-01-01")
        await ledger.close()
        return told, left, [{**row, "day": ""} for row in usage]

    async def both():
        store = Store(tmp_path / "g.db")
        local = await play(LocalLedger(store), 5)
        shared = await play(RedisLedger(redis_url), 5)
        store.close()
        return local, shared

    local, shared = asyncio.run(both())
    assert local == shared
    assert local[0].count(True) > 30 and local[0].count(True) < 150


def test_what_a_silent_gateway_left_is_settled_once(redis_url):
    from lmworks.serving.gateway.redis_ledger import RedisLedger

    limits = Limits(tokens_per_day=1000)
    _, key = new_key(b"0123456789abcdef", "x")

    async def play():
        first, second = RedisLedger(redis_url), RedisLedger(redis_url)
        await first.settle_lost()
        ticket = _ticket(1, key, limits, 100)
        await first.admit(ticket)
        ticket.written_tokens = 6
        await first.progress([ticket])
        assert await second.settle_lost() == 0  # the first one lives
        assert await second.left(key, limits) == {"tokens": 900}
        await first._redis.delete(f"lmworks:gateway:alive:{first._gateway}")
        assert await second.settle_lost() == 1
        assert await second.left(key, limits) == {"tokens": 1000 - 4 - 6}
        # It was only slow: what it settles now was settled already.
        used = Used(key_id=key.id, model="chat").dated(ticket.started_s)
        await first.settle(ticket, Cost(1, 50, 0), used, [])
        assert await second.left(key, limits) == {"tokens": 990}
        (row,) = await second.usage("2026-01-01")
        assert (row["interrupted"], row["completion_tokens"]) == (1, 6)
        await first.close()
        await second.close()

    asyncio.run(play())


# --- processes ---


class Process:
    """`lmworks gateway serve` as users start it."""

    def __init__(self, path) -> None:
        command = [sys.executable, "-m", "lmworks.cli.main", "gateway", "serve", str(path)]
        self.process = subprocess.Popen(
            [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout
        said = []
        for line in self.process.stdout:
            said.append(line)
            if "OpenAI API" in line:
                break
        assert "OpenAI API" in said[-1], "".join(said)
        self.url = said[-1].split()[-1].removesuffix("/v1")

    def end(self, number=signal.SIGKILL) -> int:
        self.process.send_signal(number)
        status = self.process.wait(20)
        assert self.process.stdout
        self.process.stdout.close()
        return status


@pytest.fixture
def start():
    """Starts gateways; those that still run after the test are killed."""
    started: list[Process] = []

    def begin(path) -> Process:
        started.append(Process(path))
        return started[-1]

    yield begin
    for one in started:
        if not one.process.stdout.closed:
            one.end()


@pytest.fixture
def written(fake, tmp_path):
    """A config file over a back end that streams slowly, and a way to look into the store."""
    back = fake(mode="slow", tokens=100)
    config = config_over(tmp_path, {"a": back}, drain_s=5)
    live = LiveGateway(dataclasses.replace(config))  # never started: for its store and keys
    values = {**yaml.safe_load(config.path.read_text()), "secret_env": "LMWORKS_TEST_SECRET"}
    config.path.write_text(yaml.safe_dump(values))
    yield config.path, live, back
    live._socket.close()


def test_kill_9_loses_at_most_the_last_second(written, start):
    path, live, back = written
    running = start(path)
    key = live.key(tokens_per_day=100_000, requests_per_day=100)
    headers = {"Authorization": f"Bearer {key}"}
    body = {"model": "chat", "messages": [], "stream": True}
    seen = 0
    with httpx.Client(base_url=running.url, headers=headers, timeout=10) as client:
        for _ in range(3):
            back.mode("ok")
            assert ask(client, max_tokens=5).status_code == 200
        back.mode("slow")
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                seen += line.count('"content": "w')
                if seen >= 36:  # of 64, one every 50 ms: it is not over, and was saved
                    break
            running.end()
    before = live.rows("SELECT sum(requests) AS n, sum(completion_tokens) AS t FROM usage")[0]
    assert (before["n"], before["t"]) == (3, 15)  # what was settled is there
    assert len(live.rows("SELECT * FROM open_requests")) == 1
    running = start(path)
    row = live.rows("SELECT * FROM usage WHERE interrupted > 0")[0]
    per_second = 1 / 0.05
    assert seen - 1.5 * per_second <= row["completion_tokens"] < 64
    with httpx.Client(base_url=running.url, headers=headers) as client:
        left = client.get("/v1/key").json()["left"]
    spent = 3 * (7 + 5) + row["prompt_tokens"] + row["completion_tokens"]
    assert left == {"requests": 96, "tokens": 100_000 - spent}


def test_it_ends_well_and_is_alone_on_its_store(written, start):
    path, live, _ = written
    running = start(path)
    command = [sys.executable, "-m", "lmworks.cli.main", "gateway", "serve", str(path)]
    second = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, timeout=60)
    assert second.returncode == 2 and "another gateway uses" in second.stderr
    headers = {"Authorization": f"Bearer {live.key()}"}
    with httpx.Client(base_url=running.url, headers=headers, timeout=20) as client:
        body = {"model": "chat", "messages": [], "stream": True, "max_tokens": 20}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            running.process.send_signal(signal.SIGTERM)
            text = "\n".join(lines)  # a second of it is still to come
    assert text.count('"content": "w') == 20 and "[DONE]" in text
    assert running.process.wait(10) == 0
    assert live.rows("SELECT sum(completion_tokens) AS t FROM usage")[0]["t"] == 20
    running.process.stdout.close()
    assert load_config(path).settings.drain_s == 5
