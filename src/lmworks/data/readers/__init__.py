"""Files to text: one reader per kind of file, a line each in `base.READERS`."""
