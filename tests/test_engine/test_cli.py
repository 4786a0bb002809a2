"""Arguments that several tools take, and what a config comes to."""
import argparse
import os

import pytest
import torch
from mmdet3d.models import SECOND
from mmengine.config import Config
from mmengine.model import BaseModule
from torch import nn

from sigplug.engine import cli, process
from sigplug.errors import UserError


def parse(monkeypatch, *args):
    parser = argparse.ArgumentParser()
    cli.add_common_arguments(parser)
    monkeypatch.setattr('sys.argv', ['tool', *args])
    # So that what is set is taken back.
    for name in ('LOCAL_RANK', 'RANK'):
        monkeypatch.setenv(name, '7')
        monkeypatch.delenv(name)
    return cli.parse_args(parser)


def test_common_arguments(monkeypatch):
    monkeypatch.setenv('SLURM_PROCID', '1')
    args = parse(monkeypatch, '--local-rank', '3', '--cfg-options', 'a.b=1',
                 'c=[x,y]', '--launcher', 'slurm', '--work-dir', 'w')
    assert args.cfg_options == {'a.b': 1, 'c': ['x', 'y']}
    assert (args.launcher, args.work_dir) == ('slurm', 'w')
    assert os.environ['LOCAL_RANK'] == '3'
    assert not process.is_rank_zero()
    # Runs of their own under srun are each the first.
    parse(monkeypatch)
    assert process.is_rank_zero()


def test_an_option_without_a_value(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        parse(monkeypatch, '--cfg-options', 'a.b')
    assert end.value.code == 2
    assert '--cfg-options takes KEY=VALUE' in capsys.readouterr().err


def test_runner_needs_a_model():
    with pytest.raises(UserError, match='has no model'):
        cli.build_runner(Config())


def test_model_takes_all_weights_of_its_checkpoint(tmp_path):
    cfg = Config(dict(model=dict(type='GeM', channels=2)))
    path = str(tmp_path / 'a.pth')
    torch.save(dict(state_dict=dict(p=torch.tensor([2.0, 5.0]))), path)
    model = cli.build_model(cfg, path, 'cpu')
    assert model.p.tolist() == [2.0, 5.0] and not model.training
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(UserError, match='a.pth.* does not fit the model'):
        cli.build_model(cfg, path, 'cpu')


class Part(BaseModule):

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(x)


class Drops(Part):
    """It may have loaded the weights itself."""

    def __init__(self, **kwargs):
        super().__init__()


class OwnWay(Part):
    """As the SwinTransformer of mmdet, which renames what it reads."""

    def init_weights(self):
        pass


class Bare(nn.Linear):
    def __init__(self, **kwargs):
        super().__init__(2, 2)


class Renamed(Part):
    """A part that knows its names of an earlier version."""

    def _load_from_state_dict(self, state, prefix, *args):
        for name in [*state]:
            state[name.replace('old.', 'fc.')] = state.pop(name)
        super()._load_from_state_dict(state, prefix, *args)


def second(**kwargs):
    return SECOND(in_channels=2, out_channels=[2], layer_nums=[1],
                  layer_strides=[1], **kwargs)


@pytest.mark.parametrize('part, init, words', [
    (Part, dict(), 'neck.init_cfg.checkpoint'),
    (Part, dict(checkpoint='nowhere.pth'), "'nowhere.pth' does not exist"),
    (OwnWay, dict(checkpoint='nowhere.pth'), "'nowhere.pth' does not exist"),
    (Part, dict(checkpoint='{}'), 'no weight in .* of Part'),
    (Part, dict(checkpoint='{}', prefix='backbone'), 'no weight in'),
    # With a prefix mmengine takes the names as they are.
    (Part, dict(checkpoint='{}', prefix='ddp'), 'no weight in'),
    (second, dict(checkpoint='{}', prefix='neck'), 'SECOND replaces it by'),
    (Part, dict(checkpoint='{}', prefix='neck'), None),
    (Part, dict(checkpoint='{}', prefix='neck.'), None),
    (Part, dict(checkpoint='{}', prefix='module.ddp'), None),
    (Renamed, dict(checkpoint='{}', prefix='earlier'), None),
    (Drops, dict(checkpoint='{}'), None),
    (OwnWay, dict(checkpoint='{}'), None),
    (Bare, dict(checkpoint='{}'), None),
    (Part, dict(checkpoint='https://a.org/x.pth'), None),
])
def test_pretrained_part(tmp_path, part, init, words):
    path = str(tmp_path / 'a.pth')
    torch.save(dict(state_dict={
        f'{prefix}.{name}': value
        for prefix, own in (('neck', 'fc'), ('module.ddp', 'fc'),
                            ('earlier', 'old'))
        for name, value in nn.ModuleDict({own: nn.Linear(2, 2)}
                                         ).state_dict().items()}), path)
    init = dict(init, type='Pretrained')
    if 'checkpoint' in init:
        init['checkpoint'] = init['checkpoint'].format(path)
    cfg = Config(dict(model=dict(neck=dict(init_cfg=init))))
    model = nn.Module()
    model.neck = part(init_cfg=init)
    if words is None:
        cli.check_pretrained(cfg, model)
        if part in (Part, Renamed) and '://' not in init['checkpoint']:
            # As mmengine does.
            before = model.neck.fc.weight.clone()
            model.neck.init_weights()
            assert not model.neck.fc.weight.equal(before)
    else:
        with pytest.raises(UserError, match=words):
            cli.check_pretrained(cfg, model)


def test_compilation_of_parts():
    """Checkpoints keep their names."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    model = nn.ModuleDict(dict(
        pts_backbone=Part(), pts_neck=Part(), head=Part()))
    names = list(model.state_dict())
    cfg = Config(dict(a=1))
    cli.compile_parts(cfg, model)
    for part in model.values():
        part(torch.ones(2))
    assert not compiled
    cfg.compile = dict(backend=backend)
    cli.compile_parts(cfg, model)
    for part in model.values():
        part(torch.ones(2))
    # Else mmengine would compile as well.
    assert compiled and 'compile' not in cfg
    assert list(model.state_dict()) == names
