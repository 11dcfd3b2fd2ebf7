"""Looking at a run: the local page of ``rarefy view`` and the static gallery.html."""
