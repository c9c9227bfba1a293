"""KaSA in other trainers: ms-swift, LLaMA-Factory, Axolotl and TRL's scripts (docs/integrations.md).

One module for each trainer, imported by that trainer only. They need the core of kasatune, not its extras.
"""
