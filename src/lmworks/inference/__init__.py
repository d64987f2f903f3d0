"""Generation: an engine that serves many requests at once, and one protocol to talk to any model.

In: a model and its tokenizer (or a reference to them, or to a remote endpoint), and messages or
text with sampling settings. Out: a `Completion`, or a stream of `Delta`s.

- `chat.load_chat(ref)` gives a `ChatModel` for every kind of reference; evaluation, the server and
  whatever else talks to a model knows nothing but that protocol (`base.py`).
- `engine.Engine` batches running requests step by step (continuous batching) over a KV cache.
- `sampling.Sampling` is one request's settings; `sampling.Sampler` turns logits into a token.
- `settings.Settings` sorts what a request asks: its form (`grammar`), its tools (`tools`).
- `speculative.Speculation` guesses tokens that the engine checks together.

Of the 88 systems, here live the inference engine with its KV cache and continuous batching, the
samplers, speculative decoding, token streaming with stop strings, and the client of remote
endpoints.
"""
