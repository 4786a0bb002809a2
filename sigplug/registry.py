"""The registries of the scope ``sigplug``.

They are children of mmengine's, so that ``type='sigplug.X'`` in a config
builds from every scope without ``custom_imports``: mmengine imports this file
by its name and then the modules in ``locations``.

With torch alone there is nothing to register in, and the layers, losses and
necks are plain modules.
"""
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING or find_spec('mmengine') is not None:
    from mmengine.registry import HOOKS as ROOT_HOOKS
    from mmengine.registry import MODELS as ROOT_MODELS
    from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
    from mmengine.registry import Registry
else:

    class Registry:
        """The stand-in for mmengine's, which keeps nothing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def register_module(self, module: Any = None) -> Any:
            """Return the class, or a decorator that returns it."""
            return module or (lambda cls: cls)

        def build(self, cfg: Any) -> Any:
            """Say what a config needs."""
            raise ImportError(f'{cfg} is a config, and only mmengine builds '
                              'parts from configs: pip install mmengine')

    ROOT_HOOKS = ROOT_MODELS = ROOT_TRANSFORMS = Registry()

MODELS = Registry(
    'model',
    parent=ROOT_MODELS,
    scope='sigplug',
    locations=[
        'sigplug.models', 'sigplug.models.data_preprocessors',
        'sigplug.models.dense_heads', 'sigplug.models.voxel_encoders'
    ])
HOOKS = Registry(
    'hook',
    parent=ROOT_HOOKS,
    scope='sigplug',
    locations=['sigplug.engine.hooks'])
TRANSFORMS = Registry(
    'transform',
    parent=ROOT_TRANSFORMS,
    scope='sigplug',
    locations=['sigplug.datasets.check_sample'])

BARE_HOOK_NAMES = ('CheckLossHook', 'HeatmapSaturationHook', 'LiveLookHook')

_Class = TypeVar('_Class', bound=type)


def register_everywhere(cls: _Class) -> _Class:
    """Register a model part as ``sigplug.X`` and under its bare name.

    The bare name goes to mmengine's root registry, where mmcv keeps its own
    activations too, and so resolves from every scope.
    """
    MODELS.register_module(module=cls)
    ROOT_MODELS.register_module(module=cls)
    return cls


def register_bare_hook_names() -> None:
    """Let ``type='X'`` build the hook ``sigplug.X`` from every scope.

    A function stands for the class, because importing mmengine's hooks would
    cost ``import sigplug`` a second.
    """
    for name in BARE_HOOK_NAMES:
        ROOT_HOOKS.register_module(name, module=_make_builder(name))


def _make_builder(name: str) -> Callable:

    def build(**kwargs: Any) -> Any:
        return HOOKS.build(dict(kwargs, type=f'sigplug.{name}'))

    return build


def register_unavailable(name: str, error: Exception,
                         package: str = 'mmdet3d') -> type:
    """Register a stand-in for a class whose imports fail.

    It raises an ``ImportError`` when it is built. Without it a config that
    names the class would end in a confusing "not in the registry". The class
    is built on ``package`` and mmcv.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ImportError(
            f'sigplug.{name} needs {package} and mmcv with its operators, '
            f'whose import fails here: {error}. Install them ("make env" '
            'builds the whole stack, see the README).') from error

    stand_in = type(name, (), {'__init__': __init__})
    MODELS.register_module(module=stand_in)
    return stand_in


def check_config(name: str, cfg: Any) -> None:
    """Raise a ``TypeError`` unless ``cfg`` is the config of a part."""
    if not isinstance(cfg, dict) or not cfg.get('type'):
        meant = cfg if isinstance(cfg, str) else '...'
        raise TypeError(f'{name} must be a config like dict(type={meant!r}), '
                        f'but got {cfg!r}')
