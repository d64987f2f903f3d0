"""How a model that is tuned is held to what it could before: one file per method."""
