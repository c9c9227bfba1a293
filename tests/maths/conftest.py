from hypothesis import settings

# first calls of torch kernels are slow, and so is a busy machine
settings.register_profile("maths", deadline=None)
settings.load_profile("maths")
