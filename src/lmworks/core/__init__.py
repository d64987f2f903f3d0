"""What every other room stands on: references, stages and lineage, configs, progress, errors.

In: strings and typed configs. Out: resolved paths, artifacts (a folder with `lmworks.json`),
and one clear line when something is wrong. Nothing here imports torch.
"""
