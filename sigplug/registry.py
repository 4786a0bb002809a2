"""The registries of the scope ``sigplug``.

They are children of mmengine's, so that ``type='sigplug.X'`` in a config
builds from every scope without ``custom_imports``: mmengine imports this file
by its name and then the modules in ``locations``.
"""
from typing import Any

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=ROOT_MODELS,
    scope='sigplug',
    locations=[
        'sigplug.models', 'sigplug.models.dense_heads',
        'sigplug.models.voxel_encoders'
    ])


def register_everywhere(cls: type) -> type:
    """Register a model part as ``sigplug.X`` and under its bare name.

    The bare name goes to mmengine's root registry, where mmcv keeps its own
    activations too, and so resolves from every scope.
    """
    MODELS.register_module(module=cls)
    ROOT_MODELS.register_module(module=cls)
    return cls


def register_unavailable(name: str, error: Exception) -> type:
    """Register a stand-in for a class whose imports fail.

    Without it a config that names the class would end in a confusing "not in
    the registry".

    Args:
        name (str): The class name.
        error (Exception): Why the class cannot be imported.

    Returns:
        type: A class that raises an ``ImportError`` when it is built.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ImportError(
            f'sigplug.{name} needs mmdet3d and mmcv with its operators, whose '
            f'import fails here: {error}. Install them ("make env" builds the '
            'whole stack, see the README).') from error

    stand_in = type(name, (), {'__init__': __init__})
    MODELS.register_module(module=stand_in)
    return stand_in
