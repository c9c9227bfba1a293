"""Rows of text: readers, templates, tokenization and batches; `data.tasks` has one file a task."""
