"""A finished data set in the formats that other programs read: class folders, OpenAI's npz, Parquet with images."""
