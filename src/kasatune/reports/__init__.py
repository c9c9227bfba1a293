"""Tables, charts, the HTML page and the model cards of a run: made from its JSON files, never from a model."""
