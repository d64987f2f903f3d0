"""Models written out in NumPy, to be read and to be compared against.

In: token ids. Out: log-probabilities. `ngram.KneserNey` is the baseline that every trained model
has to beat on the same tokens.

Of the 88 systems, here lives the n-gram language model (interpolated modified Kneser-Ney).
"""
