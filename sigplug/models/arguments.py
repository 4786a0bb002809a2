"""Arguments that are handed on to a class of the stack."""
import difflib
import inspect
from collections.abc import Callable
from typing import Any


def check_keywords(module: object, keywords: dict[str, Any]) -> None:
    """Raise a ``TypeError`` at a keyword that no base class takes.

    Upstream's own error names the innermost class, which takes the fewest.

    Args:
        module (object): Of the class that is built.
        keywords (dict): What its ``__init__`` does not take by name.
    """
    known, kinds = [], inspect.Parameter
    for base in type(module).__mro__:
        if '__init__' not in vars(base):
            continue
        init = vars(base)['__init__']
        parameters = inspect.signature(init).parameters.values()
        known += [p.name for p in parameters if p.kind in (
            kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
        if all(p.kind != kinds.VAR_KEYWORD for p in parameters):
            break
    for name in keywords:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f', did you mean {near[0]!r}?' if near else ''
            raise TypeError(f'{type(module).__name__} has no argument '
                            f'{name!r}{hint}')


def name_arguments(module: object, init: Callable, args: tuple,
                   kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the next class by name, also those by position.

    Args:
        module (object): Of the class that is built.
        init (Callable): ``super().__init__``.
        args (tuple): Those by position.
        kwargs (dict): Those by name.

    Returns:
        dict: What is given, without defaults.

    Raises:
        TypeError: There is no such argument, or it is given twice.
    """
    check_keywords(module, kwargs)
    bound = inspect.signature(init).bind_partial(*args, **kwargs)
    arguments = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind == parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(name, {}))
    return arguments
