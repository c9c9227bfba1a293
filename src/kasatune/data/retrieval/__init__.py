"""Retrieval over a corpus: documents, chunks, BM25 and dense indexes."""
