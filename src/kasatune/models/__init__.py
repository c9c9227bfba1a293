"""Locate, load and quantize the base model of a recipe, and choose its device."""
