"""Adapter files: formats, conversion between them, parity measurements, and attaching to a base."""
