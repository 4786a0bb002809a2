"""Fast and safe parts under the stock heads of a model that is built."""
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

# Methods that a head keeps: they run before it is changed.
KEPT = {'__init__', 'init_weights'}
# What a detector calls; logits pass between them.
ENTRIES = {'forward', 'loss', 'predict', 'loss_and_predict'}
# What a module keeps its attributes in.
SPACES = ('__dict__', '_modules', '_buffers')


@dataclass
class Acceleration:
    """Report of :func:`accelerate`; ``str`` gives it in words.

    Attributes:
        replaced (dict[str, str]): The name of each module that was changed,
            and what is new.
        left (dict[str, str]): The name of each module that looked like a
            heatmap head and was not changed, and why.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    _undo: list[Callable[[], None]] = field(
        default_factory=list, init=False, repr=False)

    def undo(self) -> None:
        """Give the model back its own parts; a second call does nothing."""
        while self._undo:
            self._undo.pop()()

    def __str__(self) -> str:
        lines = [f'{name or "the model"}: {words}'
                 for name, words in {**self.replaced, **self.left}.items()]
        return '\n'.join(lines) or 'no heatmap head was found'


def accelerate(model: nn.Module) -> Acceleration:
    """Replace the clip, the loss and the targets of stock heatmap heads.

    The heads are mmdet3d's ``CenterHead`` and ``SMOKEMono3DHead``, for which
    activation and loss become one operation and the targets lose their loop
    over boxes (and on a GPU the branches of a ``CenterHead`` become a few
    convolutions, and its decoding one of the whole batch), and mmdet's
    ``CenterNetHead``, ``CornerHead`` and ``CentripetalHead``, for which the
    targets do. A subclass is changed as far as it leaves alone what would be
    replaced; with a loss of its own, a ``CenterHead`` gets the targets.

    Losses, gradients and predictions stay the same up to rounding, and so do
    the parameters and the ``state_dict``. Where a batch has NaN among its
    targets, or none at all, the loss is a number where the stock head's is
    not. ``forward`` of ``SMOKEMono3DHead`` returns logits instead of scores.
    A model that is changed cannot be pickled as a whole; its ``state_dict``
    can. A deep copy of it stays changed: ``undo`` knows the original alone.

    Args:
        model (nn.Module): A detector, a head, or any module that holds one.

    Returns:
        Acceleration: What was replaced and what was left;
        ``Acceleration.undo()`` takes it back.

    Raises:
        ImportError: mmdet is missing.
    """
    done, recipes = Acceleration(), _recipes()
    for name, module in list(model.named_modules()):
        reasons: list[str] = []
        if isinstance(module, tuple(recipe.part for recipe in recipes)):
            done.left[name] = "left, as it is already sigplug's"
            continue
        for recipe in recipes:
            if not isinstance(module, recipe.stock):
                continue
            try:
                recipe.check(module)
                words = _replace(module, recipe, done._undo)
            except ValueError as error:
                reasons.append(str(error))
                continue
            done.replaced[name] = ' as '.join([words, *reasons])
            break
        else:
            if reasons:
                done.left[name] = f'left, as {reasons[0]}'
            elif any(map(_is_focal_loss, module.children())):
                done.left[name] = (
                    f'left, as {type(module).__name__} is no head that is '
                    'known; docs/heads.md has the parts for it')
    return done


@dataclass
class _Recipe:
    """How a stock head is changed."""

    stock: type[Any]
    part: type[Any]
    # The name of the loss that becomes one operation with its clip.
    loss: str | None = None
    # Methods of the stock head that are no longer called.
    unused: tuple[str, ...] = ()
    # Losses that the part averages, whatever their reduction.
    averaged: tuple[str, ...] = ()

    def check(self, module: nn.Module) -> None:
        """Raise ValueError, with the reason, if a module must stay."""
        from sigplug.models.dense_heads.heatmap_loss import (
            check_reductions,
            names_in,
        )

        # Up to where the stock head's own code begins.
        mro = type(module).__mro__
        own = [(name, value)
               for part in (module, *mro[:mro.index(self.stock)])
               for name, value in vars(part).items() if name not in KEPT]
        # A method of such a name would be bypassed, or bypass the part.
        names = {*self.unused, *(
            name for cls in self.part.__mro__
            if not issubclass(self.stock, cls) for name in vars(cls)
            if callable(getattr(cls, name)) and name[:2] != '__')}
        if self.loss:
            if getattr(getattr(module, self.loss), 'from_logits', False):
                raise ValueError(
                    f'its {self.loss} takes logits, and gets scores')
            # So would one that computes scores, or a loss of them.
            parts = {self.loss, 'heatmap_act', 'clip_sigmoid'}
            names |= ENTRIES | {
                name for name, value in own if parts & names_in(value)}
        found = sorted(name for name, _ in own if name in names)
        if found:
            raise ValueError(
                f'{type(module).__name__} has a {found[0]} of its own')
        check_reductions(module, *self.averaged)


def _recipes() -> list[_Recipe]:
    """Return how to change the heads of the installed packages."""
    # Not on the import of sigplug, which stays quick.
    from mmdet.models.dense_heads import CenterNetHead, CornerHead

    from sigplug.models.dense_heads.image_targets import (
        CenterNetTargets,
        CornerTargets,
    )
    recipes = [_Recipe(CenterNetHead, CenterNetTargets),
               _Recipe(CornerHead, CornerTargets)]
    try:
        from mmdet3d.models import dense_heads as stock
    # mmdet3d asserts the versions of its dependencies.
    except (ImportError, AssertionError):
        return recipes
    from sigplug.models import dense_heads as ours
    from sigplug.models.dense_heads.center_targets import CenterHeadTargets
    return [
        _Recipe(stock.CenterHead, ours.CenterHead, 'loss_cls',
                ('get_targets_single', ), ('loss_bbox', )),
        # For one with a loss of its own.
        _Recipe(stock.CenterHead, CenterHeadTargets,
                unused=('get_targets_single', )),
        _Recipe(stock.SMOKEMono3DHead, ours.SMOKEMono3DHead, 'loss_cls'),
        *recipes]


def _replace(module: nn.Module, recipe: _Recipe,
             undo: list[Callable[[], None]]) -> str:
    """Change a module, note how to undo it, and return what is new."""
    old = type(module)
    # The part comes first, the module's own class behind it.
    new = type(old.__name__, (recipe.part, old), {
        name: getattr(old, name) for name in KEPT} | {
            '__module__': old.__module__})
    spaces = [getattr(module, space) for space in SPACES]
    before = [dict(space) for space in spaces]
    persistence = {*module._non_persistent_buffers_set}

    def restore(after: list[dict[str, Any]]) -> None:
        """Take back what is another one after the change, and no more."""
        module.__class__ = old
        for space, was, now in zip(spaces, before, after, strict=True):
            for name in now.keys() - was.keys():
                space.pop(name, None)
            space.update((name, value) for name, value in was.items()
                         if name not in now or now[name] is not value)
        module._non_persistent_buffers_set = persistence

    try:
        module.__class__ = new
        words = _set_up(module, recipe.loss)
    except Exception:
        restore([dict(space) for space in spaces])
        raise
    undo.append(functools.partial(restore, [dict(x) for x in spaces]))
    return words


def _set_up(module: nn.Module, name: str | None) -> str:
    """Build what a part needs, with its loss, and return what is new."""
    words = 'targets without a loop over boxes'
    if name is None:
        return f'{words}, its loss is left'
    loss = getattr(module, name)
    if _is_focal_loss(loss):
        from sigplug.models.losses import GaussianFocalLossWithLogits

        # Behind the stock clip, of logits.
        setattr(module, name, GaussianFocalLossWithLogits(
            loss.alpha, loss.gamma, loss.reduction, loss.loss_weight,
            loss.pos_weight, loss.neg_weight, clip=1e-4))
        words = f'clip and loss in one operation, {words}'
    else:
        words = f'the clip; {type(loss).__name__} is left, {words}'
    head: Any = module
    head.set_up()
    return words


def _is_focal_loss(loss: Any) -> bool:
    """Return whether a loss is mmdet's, as it was built."""
    from mmdet.models.losses import GaussianFocalLoss
    return type(loss) is GaussianFocalLoss and not (
        loss._forward_hooks or loss._forward_pre_hooks
        or loss._backward_hooks)
