"""Data preprocessors, built on mmdet3d's."""
from sigplug.registry import register_unavailable

try:
    from .det3d_data_preprocessor import Det3DDataPreprocessor
# mmdet3d asserts the versions of its dependencies.
except (ImportError, AssertionError) as error:
    # To a type checker the name stays the class.
    globals()['Det3DDataPreprocessor'] = register_unavailable(
        'Det3DDataPreprocessor', error)

__all__ = ['Det3DDataPreprocessor']
