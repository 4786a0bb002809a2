"""Fast and safe parts under the stock heads of a model that is built."""
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

# What a head keeps of its own: it was built, and has its weights.
KEPT = {'__init__', 'init_weights'}


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
        lines = [f'{name or "the model"}: {words}' for part in (
            self.replaced, self.left) for name, words in part.items()]
        return '\n'.join(lines) or 'no heatmap head was found'


def accelerate(model: nn.Module) -> Acceleration:
    """Replace the clip, the loss and the targets of stock heatmap heads.

    The heads are mmdet3d's ``CenterHead`` and ``SMOKEMono3DHead``, for which
    activation and loss become one operation and the targets lose their loop
    over boxes, and mmdet's ``CenterNetHead``, ``CornerHead`` and
    ``CentripetalHead``, for which the targets do. A subclass is changed as
    far as it leaves alone what would be replaced; with a loss of its own, a
    ``CenterHead`` gets the targets.

    Losses, gradients and predictions stay the same up to rounding, and so do
    the parameters and the ``state_dict``. Where a batch has NaN among its
    targets, or none at all, the loss is a number where the stock head's is
    not. ``forward`` of ``SMOKEMono3DHead`` returns logits instead of scores.
    A model that is changed cannot be pickled as a whole; its ``state_dict``
    can.

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
        for recipe in recipes:
            if not isinstance(module, recipe.stock):
                continue
            reason = recipe.obstacle(module)
            try:
                if not reason:
                    words = _replace(module, recipe, done._undo)
                    done.replaced[name] = ' as '.join([words, *reasons])
                    break
            except ValueError as error:
                reason = str(error)
            reasons.append(reason)
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

    def obstacle(self, module: nn.Module) -> str:
        """Return why the module cannot be changed, or nothing."""
        if isinstance(module, self.part):
            return "it is already sigplug's"
        loss = getattr(module, self.loss) if self.loss else None
        if getattr(loss, 'from_logits', False):
            return f'its {self.loss} takes logits, and gets scores'
        # What is called no longer, or from elsewhere.
        names = {*self.unused, *(
            name for cls in self.part.__mro__
            if not issubclass(self.stock, cls) for name in vars(cls)
            if callable(getattr(cls, name)) and name[:2] != '__')} - KEPT
        # Up to where the stock head's own code begins.
        mro = type(module).__mro__
        above = [module, *mro[:mro.index(self.stock)]]
        own = sorted(name for name in names
                     if any(name in vars(part) for part in above))
        return own and (f'{type(module).__name__} has a {own[0]} of its own'
                        ) or ''


def _recipes() -> list[_Recipe]:
    """Return how to change the heads of the packages that are there."""
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
                ('get_targets_single', )),
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
    before = {space: {*getattr(module, space)} for space in (
        '__dict__', '_modules', '_buffers', '_non_persistent_buffers_set')}
    loss = None if recipe.loss is None else getattr(module, recipe.loss)

    def restore() -> None:
        module.__class__ = old
        for space, names in before.items():
            owned: Any = getattr(module, space)
            for name in {*owned} - names:
                owned.pop(name) if isinstance(owned, dict) else owned.remove(
                    name)
        if recipe.loss is not None:
            setattr(module, recipe.loss, loss)

    undo.append(restore)
    words = ['targets without a loop over boxes']
    if recipe.loss is None:
        words.append('its loss is left')
    try:
        module.__class__ = new
        if recipe.loss is not None:
            if _is_focal_loss(loss):
                setattr(module, recipe.loss, _fuse(loss))
                words.insert(0, 'clip and loss in one operation')
            else:
                words.insert(0, f'the clip; {type(loss).__name__} is left')
            head: Any = module
            head.set_up()
            # Its new buffers go where its weights are.
            module.to(next(module.parameters()).device)
    except Exception:
        undo.pop()()
        raise
    return ', '.join(words)


def _is_focal_loss(loss: Any) -> bool:
    """Return whether a loss is mmdet's, as it was built."""
    from mmdet.models.losses import GaussianFocalLoss
    return type(loss) is GaussianFocalLoss and not (
        loss._forward_hooks or loss._forward_pre_hooks
        or loss._backward_hooks)


def _fuse(loss: Any) -> nn.Module:
    """Return the loss behind the stock clip, of logits."""
    from sigplug.models.losses import GaussianFocalLossWithLogits
    return GaussianFocalLossWithLogits(
        loss.alpha, loss.gamma, loss.reduction, loss.loss_weight,
        loss.pos_weight, loss.neg_weight, clip=1e-4)
