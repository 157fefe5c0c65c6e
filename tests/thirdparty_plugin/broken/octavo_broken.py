"""A plugin whose hook asks for an argument that there is not."""

from octavo import hookimpl


@hookimpl
def quantized_classes():
    return {"octavo_broken:Own": "octavo_broken:QuantOwn"}


@hookimpl
def tiny_inputs(module):
    return {"x": module}
