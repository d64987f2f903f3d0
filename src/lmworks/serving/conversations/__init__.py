"""Conversations on disk, with what belongs to them: attachments, prompts, summaries, vectors.

In: messages as they are written and answered. Out: `ConversationStore`, which the chat page and
`lmworks chat` share, and `routes.add_routes`, the API under /api/conversations.

- `store` keeps the trees, `database` the file, `search` finds, `files` exports and imports;
- `answers` runs an answer: plans what the model is sent, saves it as it grows, remembers after;
- `attachments` and `prompts` are what their names say.
"""
