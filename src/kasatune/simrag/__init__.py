"""SimRAG: a model teaches itself to answer from documents (arXiv 2410.17952); `pipeline.simrag` is the entry point."""
