"""The base model's weights: read from memory and from safetensors files, and fingerprinted."""
