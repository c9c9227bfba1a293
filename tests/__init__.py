from kasatune.runs.quiet import hush_imports

hush_imports()
