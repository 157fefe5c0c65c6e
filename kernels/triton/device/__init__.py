"""Functions in the language of Triton, which run on the device."""
