"""Sends data sets and model folders to the Hugging Face Hub."""
