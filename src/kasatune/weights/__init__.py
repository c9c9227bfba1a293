"""Weights of the base model: read and replaced in memory, read from safetensors, dequantized, fingerprinted."""

# First: importing peft runs kasatune's registration, which imports the modules of this package.
import peft  # noqa: F401
