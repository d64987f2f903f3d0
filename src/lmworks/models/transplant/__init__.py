"""Putting another tokenizer into a trained model: which row every token of it begins with.

In: a model, its tokenizer and the new one, for some methods text of the field. Out: a model whose
embedding and head fit the new tokenizer (`surgery.transplant`), or the folder that stage
`transplant` writes. Tokens that both vocabularies hold keep their row to the bit; what the others
get is the method's choice, one file and one line in `base.METHODS` each. Training the model on
afterwards is no part of this: see `lmworks train`.
"""
