"""How rare each image of a run is: one table per shard, in OUT/rarity."""
