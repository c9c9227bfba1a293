"""A local web page (`kasatune ui`): start runs, watch and compare them, chat with models, export adapters."""
