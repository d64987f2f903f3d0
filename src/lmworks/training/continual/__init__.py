"""One task after another, with what was learnt before held on to.

In: a model, the rows of a task, and what earlier rounds left (`memory`, Fisher information, bases
of adapters). Out: `learn`, which trains the model on the task, and what the next round needs.

- `tasks` reads what is to be learnt, `rows` makes batches of it, `memory` keeps some of it;
- `online_ewc` and `stacks` are ways to hold on that need no earlier text; the others are
  those of `training/retention`, on the rows of the memory;
- `learn` puts a method around a task.

Whether what was learnt is kept, `evaluation/continual` decides.
"""
