"""Commands on finished adapters: export, shrink, merge, inspect, verify, and decompose for bases."""
