"""Ways to draw question and answer pairs out of a document, a file each; see `base.RULES`."""
