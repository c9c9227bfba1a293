"""Recipes: the schema, its validation, and the recipes that come with kasatune."""
