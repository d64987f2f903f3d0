"""Who is in memory: budget, order, sharing of loads and of failures, waiting for what is in use."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.serving.memory_room import MemoryRoom
from lmworks.serving.memory_units import DoesNotFit, LoadFailed, NoRoom, Unit


class Shelf:
    """Units that record what is loaded; `held` is what really lies in memory."""

    def __init__(self, sizes: dict[str, int], budget: int | None, **options: Any) -> None:
        self.room = MemoryRoom(budget, **options)
        self.held: dict[str, int] = {}
        self.most = 0
        self.events: list[str] = []
        self.broken: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.units: dict[str, Unit] = {}
        for name, size in sizes.items():
            base, dot, _ = name.partition(".")
            self.add(name, size, parent=self.units[base] if dot else None)

    def add(self, name: str, size: int, **options: Any) -> Unit:
        def load(parent: Any) -> tuple[str, int]:
            self.gate.wait(10)
            if name in self.broken:
                raise ValueError("a damaged file")
            assert options.get("parent") is None or parent is not None
            self.held[name] = size
            self.most = max(self.most, sum(self.held.values()))
            self.events.append(f"+{name}")
            return name, size

        def unload(value: Any, parent: Any) -> None:
            assert value == name
            del self.held[name]
            self.events.append(f"-{name}")

        unit = Unit(name=name, measure=lambda: size, load=load, unload=unload, **options)
        self.units[name] = unit
        self.room.add(unit)
        return unit

    def use(self, name: str) -> None:
        self.room.acquire(self.units[name]).release()


def test_the_one_idle_longest_makes_room() -> None:
    shelf = Shelf({"a": 4, "b": 4, "c": 4}, budget=8)
    for name in ("a", "b", "a", "c", "a"):
        shelf.use(name)
    assert shelf.events == ["+a", "+b", "-b", "+c"]
    shelf.use("b")
    assert shelf.events[-2:] == ["-c", "+b"]
    assert shelf.room.num_evictions == 2


def test_pinned_ones_stay_and_what_can_never_fit_is_refused() -> None:
    shelf = Shelf({"b": 4, "c": 9}, budget=8)
    shelf.add("a", 3, pinned=True)
    shelf.use("a")
    shelf.use("b")
    with pytest.raises(DoesNotFit, match="c needs 9 B, and the memory budget is 8 B"):
        shelf.use("c")
    big = shelf.add("d", 6)
    with pytest.raises(DoesNotFit, match="beside the 3 B of pinned models"):
        shelf.room.acquire(big)
    assert set(shelf.held) == {"a", "b"}


def test_what_is_in_use_is_waited_for() -> None:
    shelf = Shelf({"a": 4, "b": 6}, budget=8, wait_s=10)
    lease = shelf.room.acquire(shelf.units["a"])
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(shelf.room.acquire(shelf.units["b"])))
    thread.start()
    time.sleep(0.05)
    assert not got and shelf.held == {"a": 4}
    lease.release()
    lease.release()  # twice is once
    thread.join(5)
    assert shelf.held == {"b": 6} and shelf.units["a"].leases == 0
    assert shelf.most <= 8


def test_waiting_ends_in_one_line() -> None:
    shelf = Shelf({"a": 4, "b": 6}, budget=8, wait_s=0.05)
    with (
        shelf.room.acquire(shelf.units["a"]),
        pytest.raises(NoRoom, match=r"no room for b \(6 B\)"),
    ):
        shelf.use("b")
    shelf.use("b")


def test_a_model_that_is_never_quiet_lets_others_in() -> None:
    shelf = Shelf({"a": 4, "b": 6}, budget=8, wait_s=20, patience_s=0.1)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():  # two hold it in turns, so that it is never idle
            with shelf.room.acquire(shelf.units["a"]):
                time.sleep(0.02)

    shelf.use("a")
    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        started = time.monotonic()
        shelf.use("b")
        assert time.monotonic() - started < 5
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert shelf.most <= 8


def test_first_requests_at_once_load_once() -> None:
    shelf = Shelf({"a": 4}, budget=8)
    shelf.gate.clear()
    threads = [threading.Thread(target=shelf.use, args=("a",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert shelf.units["a"].state == "loading"
    shelf.gate.set()
    for thread in threads:
        thread.join(5)
    assert shelf.events == ["+a"] and shelf.units["a"].num_loads == 1


def test_a_failure_is_told_to_those_who_waited_and_may_be_tried_again() -> None:
    shelf = Shelf({"a": 4}, budget=8)
    shelf.broken.add("a")
    shelf.gate.clear()
    told: list[str] = []

    def ask() -> None:
        try:
            shelf.use("a")
        except LoadFailed as error:
            told.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    shelf.gate.set()
    for thread in threads:
        thread.join(5)
    assert told == ["a can't be loaded: ValueError: a damaged file"] * 3
    assert shelf.units["a"].attempts == 1 and shelf.room.used_bytes == 0
    shelf.broken.clear()
    shelf.use("a")
    assert shelf.held == {"a": 4}


def test_unloading_waits_for_those_who_use_it_and_new_ones_load_anew() -> None:
    shelf = Shelf({"a": 4}, budget=8)
    lease = shelf.room.acquire(shelf.units["a"])
    with pytest.raises(NoRoom, match="a is still in use"):
        shelf.room.release_memory(shelf.units["a"], 0.05)
    done: list[bool] = []
    thread = threading.Thread(
        target=lambda: done.append(shelf.room.release_memory(shelf.units["a"], 10))
    )
    thread.start()
    time.sleep(0.05)
    other = threading.Thread(target=shelf.use, args=("a",))
    other.start()
    time.sleep(0.05)
    assert not done and shelf.events == ["+a"]
    lease.release()
    thread.join(5)
    other.join(5)
    assert done == [True] and shelf.events == ["+a", "-a", "+a"]
    assert shelf.room.release_memory(shelf.units["a"]) is True
    assert shelf.room.release_memory(shelf.units["a"]) is False


def test_what_stands_on_another_is_loaded_after_it_and_goes_before_it() -> None:
    shelf = Shelf({"a": 4, "a.x": 1, "a.y": 1, "b": 6}, budget=8)
    shelf.use("a.x")
    shelf.use("a.y")
    shelf.use("a")
    assert shelf.events == ["+a", "+a.x", "+a.y"]
    shelf.use("b")
    assert shelf.events[3:] == ["-a.x", "-a.y", "-a", "+b"]
    lease = shelf.room.acquire(shelf.units["a.y"])
    assert lease.parent == "a" and shelf.units["a"].leases == 1
    lease.release()
    shelf.room.release_memory(shelf.units["a"])
    assert not shelf.held


def test_idle_ones_go_after_their_time() -> None:
    shelf = Shelf({"a": 4}, budget=None)
    b = shelf.add("b", 4, keep_alive_s=0.1)
    shelf.use("a")
    with shelf.room.acquire(b):
        time.sleep(0.3)
        assert set(shelf.held) == {"a", "b"}
    until = time.monotonic() + 5
    while "b" in shelf.held and time.monotonic() < until:
        time.sleep(0.02)
    assert set(shelf.held) == {"a"}
    shelf.room.close()


def test_one_that_takes_more_than_was_told_sends_others_away_or_goes_itself() -> None:
    shelf = Shelf({"a": 4, "b": 4}, budget=8)
    shelf.units["b"].measure = lambda: 2
    shelf.use("a")
    shelf.use("b")
    assert shelf.held == {"a": 4, "b": 4}
    shelf.units["a"].num_bytes, shelf.units["b"].num_bytes = None, 1
    shelf.room.release_memory(shelf.units["a"])
    fat = shelf.add("fat", 9)
    fat.measure = lambda: 1
    with pytest.raises(DoesNotFit, match="fat took 9 B"):
        shelf.room.acquire(fat)
    assert "fat" not in shelf.held and shelf.room.used_bytes <= 8


def test_after_closing_nothing_is_loaded() -> None:
    shelf = Shelf({"a": 4, "a.x": 1}, budget=8)
    lease = shelf.room.acquire(shelf.units["a.x"])
    shelf.room.close()
    assert not shelf.held
    lease.release()
    with pytest.raises(UserError, match="shutting down"):
        shelf.use("a")


_NAMES = ("a", "b", "c", "a.x", "a.y", "b.x")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["hold", "use", "drop", "unload"]), st.sampled_from(_NAMES)),
        max_size=40,
    ),
    st.integers(6, 20),
)
def test_the_budget_is_never_exceeded(steps: list[tuple[str, str]], budget: int) -> None:
    sizes = {"a": 5, "b": 6, "c": 3, "a.x": 1, "a.y": 2, "b.x": 1}
    shelf = Shelf(sizes, budget, wait_s=0.0)
    leases: list[tuple[str, Any]] = []
    for step, name in steps:
        try:
            if step == "use":
                shelf.use(name)
            elif step == "hold":
                leases.append((name, shelf.room.acquire(shelf.units[name])))
            elif step == "drop" and leases:
                leases.pop(0)[1].release()
            elif step == "unload":
                shelf.room.release_memory(shelf.units[name], 0.0)
        except (NoRoom, DoesNotFit):
            pass
        assert shelf.room.used_bytes == sum(shelf.held.values()) <= budget
        for held, lease in leases:  # what is in use is there, with what it stands on
            assert held in shelf.held and held.partition(".")[0] in shelf.held
            assert lease.value == held
    for _, lease in leases:
        lease.release()
    assert all(unit.leases == 0 and unit.closing == 0 for unit in shelf.units.values())
    shelf.use("c")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.sampled_from(_NAMES), min_size=1, max_size=12), min_size=2, max_size=4))
def test_two_threads_and_more(programs: list[list[str]]) -> None:
    sizes = {"a": 5, "b": 6, "c": 3, "a.x": 1, "a.y": 2, "b.x": 1}
    shelf = Shelf(sizes, 9, wait_s=20, patience_s=0.01)
    failures: list[BaseException] = []

    def work(names: list[str]) -> None:
        try:
            for name in names:
                with shelf.room.acquire(shelf.units[name]) as lease:
                    assert lease.value == name and name in shelf.held
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(names,)) for names in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures and not any(thread.is_alive() for thread in threads)
    assert shelf.most <= 9 and shelf.room.peak_bytes <= 9
    assert shelf.room.used_bytes == sum(shelf.held.values())
