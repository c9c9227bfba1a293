"""The base model's weights: in memory, in safetensors files, quantized, and fingerprinted."""

# First: importing peft runs kasatune's registration, which imports the modules of this package.
import peft  # noqa: F401
