"""Beginnings that were read before: a tree over pages of token ids, whose pages are used again.

A node is one full page: 16 token ids after those of its parent, and the page of the cache that
holds what the model made of them. A prompt walks down from the root as far as its ids go, and its
sequence begins with the pages it met. Adapters change what a model makes of a text, and so may the
length of the whole (`rotary_regimes`): each adapter has a root for each regime.

A page in the tree is used once by the tree and once by each sequence that holds it (`PagePool`).
When pages run short, those that the tree alone uses go, the one first that was longest not asked
for. Children go before their parents: walking a path marks its end first and its root last, so a
node is always younger than all below it.

Source: Zheng et al. 2024, SGLang (RadixAttention), arXiv 2312.07104, section 3; here in steps of a
page and not of single tokens, as in vLLM's prefix caching.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from lmworks.models.pages import PAGE, PagePool


class _Node:
    __slots__ = ("adapter", "children", "key", "page", "parent")

    def __init__(self, page: int, key: tuple[int, ...], parent: _Node | None, adapter: str) -> None:
        self.page, self.key, self.parent, self.adapter = page, key, parent, adapter
        self.children: dict[tuple[int, ...], _Node] = {}


class PrefixTree:
    """What is known of beginnings, over the pages of one pool.

    Args:
        most_pages: that the tree may use; older ones go when more come.
    """

    def __init__(self, pool: PagePool, most_pages: int) -> None:
        self._pool, self.most_pages = pool, most_pages
        self._roots: dict[tuple[str, int], _Node] = {}
        self._by_age: OrderedDict[_Node, None] = OrderedDict()  # longest not asked for first

    def __len__(self) -> int:
        """Pages in the tree."""
        return len(self._by_age)

    @property
    def pages(self) -> list[int]:
        """All of them; each once."""
        return [node.page for node in self._by_age]

    @property
    def num_idle(self) -> int:
        """Pages that the tree alone uses, which `evict` could free."""
        return sum(1 for _ in self._idle())

    def match(self, token_ids: Sequence[int], adapter: str = "", regime: int = 0) -> list[int]:
        """The pages of the longest known beginning, in order.

        At least one token is left over: the model has to read one to say what comes next. Whoever
        uses the pages has to retain them before anything else is done with the tree.
        """
        path = self._path(token_ids, (len(token_ids) - 1) // PAGE, (adapter, regime))
        self._touch(path)
        return [node.page for node in path]

    def insert(
        self, token_ids: Sequence[int], pages: Sequence[int], adapter: str = "", regime: int = 0
    ) -> None:
        """Know a beginning whose full pages are these. Where one is known already, it stays."""
        count, root = min(len(pages), len(token_ids) // PAGE), (adapter, regime)
        path = self._path(token_ids, count, root)
        node = path[-1] if path else self._roots.setdefault(root, _Node(-1, (), None, adapter))
        for index in range(len(path), count):
            key = tuple(token_ids[index * PAGE : (index + 1) * PAGE])
            self._pool.retain([pages[index]])
            child = _Node(pages[index], key, node, adapter)
            node.children[key] = child
            path.append(child)
            node = child
        self._touch(path)
        self.trim()

    def evict(self, count: int) -> int:
        """Free up to `count` pages that the tree alone uses. Returns: how many it were."""
        gone = list(itertools.islice(self._idle(), count))
        for node in gone:
            self._remove(node)
        return len(gone)

    def trim(self) -> None:
        """Free what is over `most_pages`, as far as the tree alone uses it."""
        if len(self) > self.most_pages:
            self.evict(len(self) - self.most_pages)

    def _idle(self) -> Iterator[_Node]:
        """Nodes that could go one after the other, oldest first, children before their parents."""
        gone: set[_Node] = set()
        for node in self._by_age:
            # A sequence may hold a child and a page of its own in place of its parent's.
            if self._pool.counts[node.page] == 1 and gone.issuperset(node.children.values()):
                gone.add(node)
                yield node

    def forget(self, adapter: str | None = None) -> None:
        """Let go of all that is known under an adapter, or (None) of everything."""
        for node in list(self._by_age):
            if adapter is None or node.adapter == adapter:
                self._pool.release([node.page])
                del self._by_age[node]
        for root in list(self._roots):
            if adapter is None or root[0] == adapter:
                del self._roots[root]

    def _path(self, token_ids: Sequence[int], most: int, root: tuple[str, int]) -> list[_Node]:
        return list(self._walk(token_ids, most, root))

    def _walk(self, token_ids: Sequence[int], most: int, root: tuple[str, int]) -> Iterator[_Node]:
        node = self._roots.get(root)
        for start in range(0, most * PAGE, PAGE):
            node = node and node.children.get(tuple(token_ids[start : start + PAGE]))
            if node is None:
                return
            yield node

    def _touch(self, path: Sequence[_Node]) -> None:
        for node in reversed(path):
            self._by_age[node] = None
            self._by_age.move_to_end(node)

    def _remove(self, node: _Node) -> None:
        assert not node.children
        assert node.parent is not None
        del self._by_age[node]
        del node.parent.children[node.key]
        self._pool.release([node.page])
