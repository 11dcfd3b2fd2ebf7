"""``rarefy doctor``: what this machine has, what works, and what to do about the rest."""
