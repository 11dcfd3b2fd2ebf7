"""``rarefy import``: makes a model folder from other programs' checkpoints."""
