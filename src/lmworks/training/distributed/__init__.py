"""One training on many processes: how it is laid over them, started, and rehearsed beforehand."""
