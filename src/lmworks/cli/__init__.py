"""The `lmworks` command: one table of commands, each imported only when it is called.

A stage's command is made from its config class; other commands have a file each. Nothing here
computes: a command parses, calls the room below, and prints.
"""
