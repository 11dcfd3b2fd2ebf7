"""Networks that are not rarefy's own: each adapter builds one from a model folder's description."""
