"""The tree of prefixes over the pages of a cache: no page lost, none used by two that differ."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lmworks.core.errors import UserError
from lmworks.inference.prefix_tree import PrefixTree
from lmworks.models.cache import PAGE, KVCache, OutOfPages
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, SlidingWindow
from lmworks.models.pages import PagePool

SLOTS, POSITIONS, HEADS, SIZE = 4, 80, 2, 4


def config(**settings: Any) -> ModelConfig:
    return ModelConfig.uniform(
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=2,
        mixer=AttentionConfig(
            num_attention_heads=4, num_key_value_heads=HEADS, head_dim=SIZE, **settings
        ),
        feed_forward=MLPConfig(intermediate_size=16),
    )


CONFIG = config()


def tensor(ids: list[int], start: int) -> torch.Tensor:
    """What a layer would keep of ids[start:]: a function of all up to each, as in a model."""
    rows = []
    for end in range(start + 1, len(ids) + 1):
        generator = torch.Generator().manual_seed(hash(tuple(ids[:end])) % 2**31)
        rows.append(torch.randn(HEADS, SIZE, generator=generator))
    return torch.stack(rows, 1)[None]


class Sharing(RuleBasedStateMachine):
    """Sequences that come, grow, branch, are taken back and leave, in a pool that is too small."""

    @initialize(pages=st.integers(6, 14), most=st.integers(0, 9))
    def begin(self, pages: int, most: int) -> None:
        self.cache = KVCache(CONFIG, SLOTS, POSITIONS, num_pages=pages)
        self.tree = PrefixTree(self.cache.pool, most)
        self.cache.make_room = self.tree.evict
        self.held: list[list[int]] = [[] for _ in range(SLOTS)]

    @rule(slot=st.integers(0, SLOTS - 1), ids=st.lists(st.integers(0, 1), min_size=1, max_size=2))
    def start(self, slot: int, ids: list[int]) -> None:
        if self.held[slot]:
            return
        prompt = [number for number in ids for _ in range(PAGE)] + [2]
        pages = self.tree.match(prompt)
        assert len(pages) * PAGE < len(prompt)
        self.cache.share(slot, pages)
        self.held[slot] = prompt[: len(pages) * PAGE]
        self._grow([slot], [prompt[len(pages) * PAGE :]])

    @rule(slots=st.sets(st.integers(0, SLOTS - 1), min_size=1), count=st.integers(1, 20))
    def grow(self, slots: set[int], count: int) -> None:
        most = POSITIONS - max(len(self.held[slot]) for slot in slots)
        if count <= most:
            self._grow(sorted(slots), [[n % 2 for n in range(count)]] * len(slots))

    def _grow(self, slots: list[int], new: list[list[int]]) -> None:
        free = self.cache.pool.num_free
        try:
            step = self.cache.view(slots).begin(len(slots), len(new[0]))
        except OutOfPages as error:
            assert error.needed > error.free >= free
            return
        for layer in range(2):
            rows = [
                tensor(self.held[slot] + ids, len(self.held[slot])) for slot, ids in zip(slots, new)
            ]
            k = torch.cat(rows)
            step.layer(layer).append(k + layer, -k)
        step.commit()
        for slot, ids in zip(slots, new):
            self.held[slot] = self.held[slot] + ids

    @rule(slot=st.integers(0, SLOTS - 1))
    def keep(self, slot: int) -> None:
        self.tree.insert(self.held[slot], self.cache.pages_of(slot))

    @rule(slot=st.integers(0, SLOTS - 1))
    def leave(self, slot: int) -> None:
        self.cache.free(slot)
        self.tree.trim()
        self.held[slot] = []

    @rule(slot=st.integers(0, SLOTS - 1), share=st.floats(0, 1))
    def take_back(self, slot: int, share: float) -> None:
        length = int(len(self.held[slot]) * share)
        self.cache.truncate(slot, length)
        self.held[slot] = self.held[slot][:length]

    @rule(
        sources=st.lists(st.integers(0, SLOTS - 1), min_size=SLOTS, max_size=SLOTS),
        count=st.integers(1, SLOTS),
    )
    def branch(self, sources: list[int], count: int) -> None:
        self.cache.continue_from(range(count), sources[:count])
        self.held[:count] = [list(self.held[source]) for source in sources[:count]]

    @rule(count=st.integers(1, 4))
    def evict(self, count: int) -> None:
        idle, free = self.tree.num_idle, self.cache.pool.num_free
        assert self.tree.evict(count) == min(count, idle)
        assert self.cache.pool.num_free == free + min(count, idle)

    @rule()
    def forget(self) -> None:
        self.tree.forget()
        assert len(self.tree) == 0

    @invariant()
    def every_page_is_counted(self) -> None:
        users = Counter(page for table in self.cache.tables for page in table)
        users.update(self.tree.pages)
        counts = self.cache.pool.counts
        assert {page: n for page, n in enumerate(counts) if n} == dict(users)
        assert self.cache.pool.num_free == counts.count(0)

    @invariant()
    def every_slot_holds_its_own(self) -> None:
        assert self.cache.lengths == [len(ids) for ids in self.held]
        for slot, ids in enumerate(self.held):
            if ids:
                wanted = tensor(ids, 0)[0]
                for layer in range(2):
                    assert torch.equal(self.cache.held(layer, "keys", slot), wanted + layer)
                    assert torch.equal(self.cache.held(layer, "values", slot), -wanted)

    def teardown(self) -> None:
        for slot in range(SLOTS):
            self.cache.free(slot)
        self.tree.forget()
        assert self.cache.pool.num_free == self.cache.pool.num_pages


Sharing.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
test_sharing = Sharing.TestCase


def insert(tree: PrefixTree, pool: PagePool, ids: list[int], adapter: str = "") -> list[int]:
    """As a request would that begins, reads all, and ends."""
    pages = tree.match(ids, adapter)
    pool.retain(pages)
    pages += [pool.take() for _ in range(len(ids) // PAGE - len(pages))]
    tree.insert(ids, pages, adapter)
    pool.release(pages)
    return pages


def text(*numbers: int) -> list[int]:
    return [number for number in numbers for _ in range(PAGE)]


def test_the_longest_known_beginning_is_found_and_a_token_is_left_to_read():
    pool = PagePool(20)
    tree = PrefixTree(pool, 20)
    pages = insert(tree, pool, text(1, 2, 3))
    assert tree.match([*text(1, 2, 3), 9]) == pages
    assert tree.match(text(1, 2, 3)) == pages[:2]
    assert tree.match([*text(1, 2), 3, 3, 9]) == pages[:2]
    assert tree.match([*text(1)[:-1], 9, 9]) == []
    assert tree.match([*text(2), 9]) == []
    assert insert(tree, pool, text(1, 2, 4))[:2] == pages[:2]
    assert len(tree) == 4 and pool.num_free == 16


def test_adapters_share_nothing_and_are_forgotten_apart():
    pool = PagePool(20)
    tree = PrefixTree(pool, 20)
    pages = insert(tree, pool, text(1, 2))
    assert tree.match([*text(1, 2), 9], "polite") == []
    other = insert(tree, pool, text(1, 2), "polite")
    assert not set(pages) & set(other)
    tree.forget("polite")
    assert tree.match([*text(1, 2), 9], "polite") == []
    assert tree.match([*text(1, 2), 9]) == pages
    assert pool.num_free == 18


def test_what_was_longest_not_asked_for_goes_first_and_ends_before_beginnings():
    pool = PagePool(20)
    tree = PrefixTree(pool, 5)
    insert(tree, pool, text(1, 2, 3))
    insert(tree, pool, text(4, 5))
    tree.match([*text(1, 2, 3), 9])
    insert(tree, pool, text(6))  # a page too many: the end of 4, 5
    assert len(tree.match([*text(4, 5), 9])) == 1
    tree.evict(3)
    assert tree.match([*text(1, 2, 3), 9]) == []
    assert len(tree.match([*text(4), 9])) == len(tree.match([*text(6), 9])) == 1


def test_pages_in_use_stay():
    pool = PagePool(8)
    tree = PrefixTree(pool, 0)
    pages = [pool.take(), pool.take()]
    tree.insert(text(1, 2), pages)
    assert tree.evict(9) == 0 and tree.num_idle == 0 and len(tree) == 2
    pool.release(pages)
    assert tree.num_idle == 2
    tree.trim()
    assert len(tree) == 0 and pool.num_free == 8


def test_a_thousand_prompts_of_a_few_roots_cost_no_more_than_the_tree_may_hold():
    pool, generator = PagePool(300), random.Random(4)
    tree = PrefixTree(pool, 100)
    for _ in range(1000):
        ids = text(*(generator.randrange(3) for _ in range(generator.randrange(1, 9))))
        insert(tree, pool, ids)
        assert len(tree) <= 100
        assert pool.num_free == 300 - len(tree)


@pytest.mark.parametrize(
    ("settings", "can_share"),
    [({}, True), ({"pattern": SlidingWindow(window=8)}, False)],
)
def test_layers_that_keep_less_than_all_share_nothing(settings: Any, can_share: bool) -> None:
    cache = KVCache(config(**settings), 2, 64)
    assert cache.can_share == can_share
    if not can_share:
        with pytest.raises(ValueError, match="can't begin with the pages of others"):
            cache.share(0, [])


def test_a_pool_that_is_too_small_says_so_and_changes_nothing() -> None:
    cache = KVCache(CONFIG, 2, 64, num_pages=3)
    cache.reserve([0], 40)
    cache.lengths[0] = 40
    with pytest.raises(OutOfPages, match="2 pages of 16 positions are needed and 0 of 3 are free"):
        cache.reserve([0, 1], 10)
    assert [len(table) for table in cache.tables] == [3, 0]
    assert cache.view([0]).begin(1, 8).total == 48
    with pytest.raises(UserError, match="at least one page"):
        KVCache(CONFIG, 2, 64, num_pages=0)
    with pytest.raises(ValueError, match="page 0 is free"):
        PagePool(1).release([0])


def test_a_shared_page_is_copied_for_all_but_the_last_who_write_to_it() -> None:
    cache = KVCache(CONFIG, 2, 64, num_pages=1)
    cache.reserve([0], 5)
    cache.lengths[0] = 5
    cache.continue_from([0, 1], [0, 0])
    with pytest.raises(OutOfPages, match="1 pages of 16 positions are needed and 0 of 1 are free"):
        cache.reserve([0, 1], 1)
    assert cache.tables == [[0], [0]]
    cache.free(0)
    cache.reserve([1], 1)  # now it is its own
    assert cache.tables == [[], [0]]


def test_a_page_whose_continuation_is_in_use_stays_though_nobody_holds_it():
    pool = PagePool(8)
    tree = PrefixTree(pool, 8)
    first, again = [pool.take()], [pool.take(), pool.take()]
    tree.insert(text(1), first)
    tree.insert(text(1, 2), again)  # read at the same time: a page of its own for the beginning
    pool.release(first)
    assert tree.num_idle == 0 and tree.evict(2) == 0
    assert tree.match([*text(1, 2), 9]) == [first[0], again[1]]
    pool.release(again)
    assert tree.evict(2) == 2 and pool.num_free == 8
