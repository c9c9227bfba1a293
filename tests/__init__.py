from kasatune.io.library_noise import hush_imports

hush_imports()
