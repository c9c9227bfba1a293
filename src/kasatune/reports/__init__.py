"""Reports from the JSON files of runs, without loading a model: HTML pages, tables, charts and model cards."""
