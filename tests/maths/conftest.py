from hypothesis import settings

# first calls of torch kernels are slow, and so is a busy machine; the same examples each time, so that a run that
# failed can be repeated anywhere
settings.register_profile("maths", deadline=None, derandomize=True)
settings.load_profile("maths")
