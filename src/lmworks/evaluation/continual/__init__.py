"""Learning task after task, and whether what was learnt may be served.

In: a model and tasks, one a round. Out: `continual_round`, a stage whose folder holds the model,
the verdict of the gates and what the next round needs; `compare_continual`, the stage that measures
forgetting of several methods over seeds.

- `measures` scores a model on held-out rows of any kind, `gates` compares two models by them;
- `state` is the folder in which rounds follow each other, with a pointer to the model to serve;
- `forgetting` turns scores after each round into figures with intervals.
"""
