"""Readers of table files, text files, conversations, hub data sets and docstrings, with collected row errors."""
