"""Rows of many requests through one model, in batches of rows of about one length.

A thread owns the model. Each turn it takes the requests one after the other, so that a short one
never waits for all of a long one, and fills the batch with the rows nearest in length, whosesoever
they are: next to nothing is computed for padding.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from lmworks.inference.streams import EngineClosed
from lmworks.inference.text_rows import Row

TOKENS_AT_ONCE = 4096  # of a batch, padding counted
ROWS_AT_ONCE = 64


class RowRequest:
    """Rows under way; `wait` gives their results in their order."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self.left = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # numbers, by length
        self.missing = len(rows)  # results that are not there yet
        self.results: list[Any] = [None] * len(rows)
        self.error: Exception | None = None
        self.done = threading.Event()
        if not rows:
            self.done.set()

    def wait(self) -> list[Any]:
        """Raises: what the model raised; EngineClosed."""
        self.done.wait()
        if self.error is not None:
            raise self.error
        return self.results

    def cancel(self) -> None:
        """Drop the rows that have not been read; `wait` raises EngineClosed."""
        self.end(EngineClosed())

    def end(self, error: Exception) -> None:
        """No more results come."""
        self.error = self.error or error
        self.left = []
        self.done.set()


class RowBatches:
    """Runs `run` over the rows of all requests.

    Args:
        run: a batch of rows -> one result for each.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Row]], Sequence[Any]],
        *,
        tokens_at_once: int = TOKENS_AT_ONCE,
        rows_at_once: int = ROWS_AT_ONCE,
    ) -> None:
        self._run, self._tokens, self._rows = run, tokens_at_once, rows_at_once
        self._requests: deque[RowRequest] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, rows: Sequence[Row]) -> RowRequest:
        """Queue rows. Raises: EngineClosed."""
        request = RowRequest(rows)
        with self._wake:
            if self._closed:
                raise EngineClosed
            if rows:
                self._requests.append(request)
            if self._thread is None:  # a program that only loads a model gets no thread
                self._thread = threading.Thread(target=self._work, name="lmworks-rows", daemon=True)
                self._thread.start()
            self._wake.notify()
        return request

    def close(self) -> None:
        """End all requests and the thread. Twice is fine."""
        with self._wake:
            self._closed = True
            for request in self._requests:
                request.end(EngineClosed())
            self._wake.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # --- from here on: the thread ---

    def _work(self) -> None:
        while batch := self._next():
            rows = [request.rows[number] for request, number in batch]
            try:
                results = self._run(rows)
            except Exception as error:  # the requests of this batch are lost, no others
                for request, _ in batch:
                    request.end(error)
                continue
            for (request, number), result in zip(batch, results, strict=True):
                request.results[number] = result
                request.missing -= 1
                if not request.missing:
                    request.done.set()

    def _next(self) -> list[tuple[RowRequest, int]]:
        """The rows of the next batch; none when it is over."""
        with self._wake:
            while True:
                self._requests = deque(r for r in self._requests if r.left)
                if self._closed:
                    return []
                if self._requests:
                    return self._batch()
                self._wake.wait()

    def _batch(self) -> list[tuple[RowRequest, int]]:
        first = self._requests[0]
        self._requests.rotate(-1)
        length = len(first.rows[first.left[-1]])
        waiting = [
            (request, number)
            for request in self._requests
            for number in request.left
            if _near(len(request.rows[number]), length)
        ]
        waiting.sort(key=lambda each: abs(len(each[0].rows[each[1]]) - length))
        chosen: list[tuple[RowRequest, int]] = []
        longest = 0
        for request, number in waiting:
            longest = max(longest, len(request.rows[number]))
            if chosen and longest * (len(chosen) + 1) > self._tokens:
                break
            chosen.append((request, number))
            if len(chosen) == self._rows:
                break
        for request, number in chosen:
            request.left.remove(number)
        return chosen


def _near(length: int, wanted: int) -> bool:
    """Whether a row of `length` beside one of `wanted` costs little for padding."""
    return wanted // 2 - 8 <= length <= wanted + wanted // 4 + 8
