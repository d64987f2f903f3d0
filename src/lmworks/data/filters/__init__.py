"""Rules of quality: a document in, None or (rule, evidence) out; a line each in `base.FILTERS`."""
