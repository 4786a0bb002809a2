"""Make a config with stock heatmap heads use sigplug.

It prints a config on top of the given one, or writes it to --out. The changes
are listed on the standard error.
"""
import argparse
import copy
import os.path as osp
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from config_overlay import ABSENT, child_text, iter_changes, make_overlay
from mmengine.config import Config
from mmengine.registry import MODELS

from sigplug.cli import explain, preflight, process
from sigplug.cli.results import write_text
from sigplug.errors import UserError

# The stock heads, each with the name of its heatmap loss.
HEADS = {
    'CenterHead': 'loss_cls',
    'CenterNetHead': 'loss_center_heatmap',
    'CenterNetUpdateHead': 'loss_cls',
    'CornerHead': 'loss_heatmap',
    'CentripetalHead': 'loss_heatmap',
    'SMOKEMono3DHead': 'loss_cls',
    'MonoFlexHead': 'loss_cls',
}
PILLAR_NETS = {
    'PillarFeatureNet': 'GeMPillarFeatureNet',
    'DynamicPillarFeatureNet': 'GeMDynamicPillarFeatureNet',
}
# On the way from points to the head: the same numbers, in less time.
DROP_INS = ('Det3DDataPreprocessor', 'PointPillarsScatter')
LOSS, LOGITS_LOSS = 'GaussianFocalLoss', 'GaussianFocalLossWithLogits'
STOCK = ('', 'mmdet', 'mmdet3d')
POWER = 'gem.p'


class Part(NamedTuple):
    """A dict with a ``type`` inside of a config: its place and its class."""

    key: str
    node: dict
    package: str
    name: str

    def __str__(self) -> str:
        return f'{self.key}.type = {self.node["type"]!r}'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config',
        help='config file, or a name such as mmdet3d::centerpoint/NAME.py')
    parser.add_argument('--out', metavar='FILE.py', help='the new config')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace FILE.py')
    parser.add_argument(
        '--loss', choices=['logits'],
        help='take the Gaussian focal loss of the logits, exactly and without '
        'a clip (default: the same losses as before)')
    parser.add_argument(
        '--pillar', choices=['gem'],
        help='reduce the points of a pillar by a generalised mean with a '
        'trained power')
    return parser.parse_args()


def migrate(config: str, out: str | None = None, *, logits: bool = False,
            gem: bool = False,
            overwrite: bool = False) -> tuple[str, list[str]]:
    """Make a child of a config that uses sigplug instead of stock parts.

    The arguments are those of the command line. Nothing is written before an
    error.

    Returns:
        tuple[str, list[str]]: The child and what it changes, as ``key: old ->
        new``; both empty where nothing is to be changed.
    """
    path = preflight.find_config(config)
    if out is not None:
        check_out(out, path, overwrite)
    named, lazy = '::' in config, Config._is_lazy_import(path)
    base = config if named else osp.abspath(path)
    # mmengine adds scopes below a name.
    old = (load_text(child_text(base, {})) if named and not lazy else
           preflight.load_config(path).to_dict())
    new = copy.deepcopy(old)
    replace_heads(new, config, logits)
    replace_drop_ins(new)
    if gem:
        replace_pillar_nets(new, config)
    changes = list(iter_changes(old, new))
    if not changes:
        return '', []
    if lazy:
        raise UserError(
            f'{config!r} names its types by import (read_base). Change it by '
            'hand, with classes from sigplug.models for the names:\n' +
            '\n'.join(changes))
    add_import(new)
    overlay = make_overlay(old, new)
    wrong = list(iter_changes(new, load_text(child_text(base, overlay))))
    if wrong:
        raise UserError(
            f'{config!r} cannot be changed from a config on top of it, which '
            'would differ from what is meant (meant -> got):\n' +
            '\n'.join(wrong))
    if out is not None and not named:
        base = osp.relpath(path, osp.dirname(osp.abspath(out)))
    text = child_text(base, overlay)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    return text, list(iter_changes(old, new))


def check_out(out: str, path: str, overwrite: bool) -> None:
    if not out.endswith('.py'):
        raise UserError(f'--out must end in .py, but is {out!r}.')
    if osp.realpath(out) == osp.realpath(path):
        raise UserError(
            f'--out {out!r} is the config itself, which the result builds '
            'upon. Name another file.')
    if osp.exists(out) and not overwrite:
        raise UserError(f'--out {out!r} exists. Name another file, or add '
                        '--overwrite.')


def load_text(text: str) -> dict:
    with TemporaryDirectory() as folder:
        path = Path(folder, 'config.py')
        path.write_text(text)
        return preflight.load_config(str(path)).to_dict()


def replace_heads(cfg: dict, config: str, logits: bool) -> None:
    """Replace the heatmap heads, and with ``logits`` their losses."""
    parts = list(iter_parts(cfg))
    found = False
    for part in parts:
        if is_own_head(part):
            found = True
            continue
        if part.name not in HEADS or part.package not in (*STOCK, 'sigplug'):
            continue
        found = True
        reduction = (part.node.get(HEADS[part.name]) or {}).get(
            'reduction', 'mean')
        if reduction != 'mean':
            raise UserError(
                f'{part.key}.{HEADS[part.name]}.reduction is {reduction!r}, '
                'with which the loss is not divided by the number of objects. '
                "Heads of sigplug take 'mean' alone: write that first.")
        if part.package in STOCK:
            part.node['type'] = f'sigplug.{part.name}'
            # The others replace a plain sigmoid, or have this by default.
            if part.name == 'CenterHead' and not logits:
                part.node['heatmap_act'] = dict(type='ClipSigmoid')
        if logits:
            replace_loss(part)
    if not found:
        raise UserError(
            f'{config!r} has no heatmap head that sigplug replaces '
            f'({", ".join(HEADS)}){list_parts(parts, "head")}. The other '
            'parts of sigplug are chosen by hand, see "In your mmdet3d '
            'project" in the README.')


def is_own_head(part: Part) -> bool:
    """Return whether a head is a class of the user's on top of sigplug's.

    Raises:
        UserError: It is one on top of a stock head, or without the activation.
    """
    kind: Any = find_class(part.name)
    base = next((base for base in getattr(kind, '__mro__', ())[1:]
                 if base.__name__ in HEADS), None)
    if base is None:
        return False
    if base.__module__.startswith('sigplug.'):
        # It needs mmdet3d, which is there.
        from sigplug.models.dense_heads.center_checks import losses_without_act
        if not losses_without_act(kind, base):
            return True
    raise UserError(
        f'{part} derives from {base.__module__}.{base.__name__}. Let it '
        'derive from the class of the same name in sigplug.models.dense_heads '
        'instead, and drop its own loss_by_feat, or let that call super() or '
        'apply self.heatmap_act.')


def find_class(name: str) -> type | None:
    """Return the class of a name, if a module of the user's registers it.

    The config has imported that module.
    """
    for registry in (MODELS, *MODELS.children.values()):
        kind = registry.module_dict.get(name)
        if kind is not None and kind.__module__.partition('.')[0] not in (
                *STOCK, 'sigplug'):
            return kind
    return None


def replace_loss(part: Part) -> None:
    key = HEADS[part.name]
    loss = part.node.get(key, ABSENT)
    if class_name(loss) not in (LOSS, LOGITS_LOSS):
        raise UserError(
            f'--loss logits replaces {LOSS}, but {part.key}.{key} is '
            f"{loss!r}. Write {key}=dict(type='{LOSS}', ...) into the config "
            'first, with the arguments that you want, or leave out --loss '
            'logits.')
    if class_name(loss) == LOSS:
        loss['type'] = f'sigplug.{LOGITS_LOSS}'
    if part.node.get('heatmap_act') is not None:
        part.node['heatmap_act'] = None


def replace_drop_ins(cfg: dict) -> None:
    """Replace what computes the same as upstream's, faster."""
    for part in iter_parts(cfg):
        # A model of images has no points to voxelise.
        if part.name in DROP_INS and part.package in STOCK and (
                part.name != 'Det3DDataPreprocessor'
                or part.node.get('voxel')):
            part.node['type'] = f'sigplug.{part.name}'
            if part.name == 'PointPillarsScatter' and any(
                    each.name == 'CenterHead' for each in iter_parts(cfg)):
                part.node['channels_last'] = True


def replace_pillar_nets(cfg: dict, config: str) -> None:
    parts = list(iter_parts(cfg))
    nets = [part for part in parts
            if part.name in PILLAR_NETS and part.package in STOCK]
    if not nets and not any(part.name in PILLAR_NETS.values()
                            for part in parts):
        raise UserError(
            f'--pillar gem replaces {" and ".join(PILLAR_NETS)}, and '
            f'{config!r} has neither{list_parts(parts, "voxel_encoder")}. '
            'Leave out --pillar gem.')
    for part in nets:
        part.node.update(type=f'sigplug.{PILLAR_NETS[part.name]}', p=3.0)
        # p determines the reduction.
        part.node.pop('mode', None)
    # A config for testing has no optimiser.
    if nets and cfg.get('optim_wrapper') is not None:
        train_power(cfg['optim_wrapper'])


def train_power(wrapper: dict) -> None:
    """Give the power of a pillar net its own settings in the optimiser."""
    optimizer = wrapper.get('optimizer')
    if 'constructor' in wrapper or not isinstance(optimizer, dict):
        raise UserError(
            '--pillar gem sets optim_wrapper.paramwise_cfg.custom_keys for '
            "mmengine's default constructor and one optimizer, which this "
            'config does not have. Leave it out, choose the net by hand, and '
            f'give the parameters with {POWER!r} in their names a larger '
            'learning rate and no weight decay.')
    wrapper['paramwise_cfg'] = wrapper.get('paramwise_cfg') or {}
    keys = wrapper['paramwise_cfg'].setdefault('custom_keys', {})
    # mmengine multiplies a weight decay that is written down.
    decay = ('weight_decay' if optimizer.get('weight_decay') is None else
             'decay_mult')
    keys.setdefault(POWER, {'lr_mult': 10.0, decay: 0.0})


def add_import(cfg: dict) -> None:
    given = cfg.pop('custom_imports', None) or dict(
        imports=[], allow_failed_imports=False)
    imports = given.get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    if 'sigplug' not in imports:
        imports.append('sigplug')
    others = dict(cfg)
    cfg.clear()
    cfg.update(custom_imports=dict(given, imports=imports), **others)


def iter_parts(cfg: dict) -> Iterator[Part]:
    """Yield all dicts with a type in the models of a config."""
    for name in ('model', 'tta_model'):
        for key, node in explain.iter_dicts(cfg.get(name), name):
            if class_name(node):
                package = node['type'].rpartition('.')[0].partition('.')[0]
                yield Part(key, node, package, class_name(node))


def class_name(node: Any) -> str:
    """Return the name in the type of a dict, without its scope, or ``''``."""
    kind = node.get('type') if isinstance(node, dict) else None
    return kind.rpartition('.')[2] if isinstance(kind, str) else ''


def list_parts(parts: list[Part], word: str) -> str:
    """Return the types that were found instead, for an error."""
    found = [str(part) for part in parts if part.key.endswith(word)]
    return f'; it has {", ".join(found)}' if found else ''


def main() -> None:
    args = parse_args()
    # Modules that the config imports may print.
    with redirect_stdout(sys.stderr):
        text, changes = migrate(
            args.config, args.out, logits=args.loss == 'logits',
            gem=args.pillar == 'gem', overwrite=args.overwrite)
        if not text:
            print(f'Nothing to do: {args.config} uses sigplug already.')
            return
        print('\n'.join(changes))
    print(text if args.out is None else args.out,
          end='' if args.out is None else '\n')


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
