"""Causal language models in a run: prompts and completions as tokens, their loss, and the text that is written."""
