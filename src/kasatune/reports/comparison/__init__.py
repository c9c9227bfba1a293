"""The pages and tables of a comparison, made from the content of comparison.json alone."""
