"""What is learnt: one file per objective, a batch in, a loss and its metrics out."""
