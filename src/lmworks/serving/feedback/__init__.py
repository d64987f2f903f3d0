"""What people think of answers: collected by the server, filtered, made into data to train on.

In: thumbs and corrections of the chat page, `POST /v1/feedback` of clients, or a JSON-lines file.
Out: `collect_feedback`, a stage whose folder holds answers (to fine-tune on), pairs and votes (to
learn preferences from), and what was left out with the reason.

- `store` keeps it beside the conversations, `routes` is the endpoint;
- `reading` gives it back with the conversation before each answer, from a database or a file;
- `rules` and `verdicts` say what is left out, `rows` makes the data, `stage` writes it.
"""
