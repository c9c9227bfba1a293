"""The tables of the KaSA paper: what was published, what a run here gives, and what can be said of the two."""
