"""Measuring models: how well, how sure, compared with what; and the page that says so.

In: models (ours, a GGUF, an n-gram) and held-out text or questions. Out: bits per byte with
intervals, and a report folder (`report.json`, `report.html`).

Of the 88 systems, here live the statistics of the comprehensive evaluation suite and its first
task, bits per byte on held-out documents and answers, and the report of a run.
"""
