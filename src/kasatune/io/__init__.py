"""Files written whole or not at all, locks, progress, library output and the software environment."""
