"""The base model of a recipe: found, loaded, quantized and placed on a device."""
