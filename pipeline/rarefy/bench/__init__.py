"""How fast this machine runs a model: what ``rarefy bench`` prints and what ``benchmarks/`` builds on."""
