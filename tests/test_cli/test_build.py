"""Arguments that several tools take, and what a config comes to."""
import argparse
import os

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from torch import nn

from sigplug.cli import arguments, build, process
from sigplug.errors import UserError


def parse(monkeypatch, *args):
    parser = argparse.ArgumentParser()
    arguments.add_common_arguments(parser)
    monkeypatch.setattr('sys.argv', ['tool', *args])
    # So that what is set is taken back.
    for name in ('LOCAL_RANK', 'RANK'):
        monkeypatch.setenv(name, '7')
        monkeypatch.delenv(name)
    return arguments.parse_args(parser)


def test_common_arguments(monkeypatch):
    monkeypatch.setenv('SLURM_PROCID', '1')
    args = parse(monkeypatch, '--local-rank', '3', '--cfg-options', 'a.b=1',
                 'c=[x,y]', '--launcher', 'slurm')
    assert args.cfg_options == {'a.b': 1, 'c': ['x', 'y']}
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
        build.build_runner(Config())


def test_model_takes_all_weights_of_its_checkpoint(tmp_path):
    cfg = Config(dict(model=dict(type='GeM', channels=2)))
    path = str(tmp_path / 'a.pth')
    torch.save(dict(state_dict=dict(p=torch.tensor([2.0, 5.0]))), path)
    model = build.build_model(cfg, path, 'cpu')
    assert model.p.tolist() == [2.0, 5.0] and not model.training
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(UserError, match='a.pth.* does not fit the model'):
        build.build_model(cfg, path, 'cpu')


class OwnWay(BaseModule):
    """As the SwinTransformer of mmdet, which renames what it reads."""

    def init_weights(self):
        pass


@pytest.mark.parametrize('kind, init, words', [
    (BaseModule, dict(checkpoint='nowhere.pth'), "'nowhere.pth' does not ex"),
    (OwnWay, dict(checkpoint='nowhere.pth'), "'nowhere.pth' does not exist"),
    (BaseModule, dict(checkpoint='{}'), 'no weight in .* of BaseModule'),
    (BaseModule, dict(checkpoint='{}', prefix='backbone'), 'no weight in'),
    (BaseModule, dict(checkpoint='{}', prefix='neck'), None),
    (BaseModule, dict(checkpoint='{}', prefix='neck.'), None),
    (OwnWay, dict(checkpoint='{}'), None),
    (nn.Module, dict(checkpoint='{}'), None),
    (BaseModule, dict(checkpoint='https://a.org/x.pth'), None),
])
def test_pretrained_part(tmp_path, kind, init, words):
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict={'neck.fc.weight': torch.ones(2, 2)}), path)
    init = dict(init, type='Pretrained',
                checkpoint=init['checkpoint'].format(path))
    cfg = Config(dict(model=dict(neck=dict(init_cfg=[init]))))
    model = nn.Module()
    model.neck = kind()
    model.neck.fc = nn.Linear(2, 2)
    if words is None:
        build.check_pretrained(cfg, model)
    else:
        with pytest.raises(UserError, match=f'^model.neck.init_cfg.*{words}'):
            build.check_pretrained(cfg, model)


@pytest.mark.parametrize('asked, options', [
    (None, None), (False, None), (True, {}),
    (dict(backend='eager'), dict(backend='eager'))])
def test_compilation_of_parts(monkeypatch, asked, options):
    """In place of the real one, which leaves threads that bar a fork."""
    compiled = {}
    monkeypatch.setattr(
        nn.Module, 'compile', lambda self, **options: compiled.update(
            {self: options}), raising=False)
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in (
        'pts_backbone', 'neck', 'head')})
    cfg = Config(dict(compile=asked))
    build.compile_parts(cfg, model)
    assert compiled == ({} if options is None else {
        model[name]: options for name in ('pts_backbone', 'neck')})
    # Else mmengine would compile as well.
    assert 'compile' not in cfg
