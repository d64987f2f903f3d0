"""Files of other number formats than GGUF's: one writer per layout, one table of types."""
