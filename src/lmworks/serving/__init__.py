"""Models over HTTP: the OpenAI API, health and metrics, and a chat page, in one process.

In: `ChatModel`s by name. Out: `app.create_app`, an ASGI application that official OpenAI clients
work with unchanged, and `run.serve`, which runs it on a port of this machine until Ctrl-C.

Of the 88 systems, here live the OpenAI-compatible server, token streaming over SSE, the server's
metrics, and the chat page (`chat.html`: one file, no build, no network but its own server).
"""
