"""The audit of a data set: features, metrics with their real-against-real floor, and the page that shows them."""
