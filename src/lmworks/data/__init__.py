"""Documents: read from folders, judged, deduplicated, split; and questions drawn from them.

In: a folder of text, Markdown, HTML, PDF or source code, or the documentation that comes with
Python. Out: a corpus (train, held out, and every drop with its reason) and a dataset of question
and answer pairs. Systems that live here, begun: Data deduplication tool, Data quality scorer,
Instruction dataset creator (see docs/systems.md).
"""
