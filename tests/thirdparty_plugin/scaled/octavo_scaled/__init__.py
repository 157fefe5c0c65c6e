"""A small framework of its own and its Octavo plugin, as a third party would write it."""
