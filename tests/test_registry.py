"""Names in configs resolve from every scope, with and without mmdet3d.

What is imported by then matters. So each case runs in a fork of one process,
which imports more from stage to stage.
"""
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import SWITCH

# What every case may use.
PRELUDE = """
import json
import os
import sys
import traceback


def imported(*names):
    return sorted(set(names) & {name.split('.')[0] for name in sys.modules})


def message_of(error, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except error as caught:
        return str(caught)
    raise AssertionError(f'{function} did not raise {error}')


def run(code):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            exec(code, globals())
        except BaseException:
            os.write(write, traceback.format_exc()[-4000:].encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with open(read) as file:
        return file.read()


for imports, cases in json.load(sys.stdin):
    exec(imports, globals())
    print(json.dumps({name: run(code) for name, code in cases.items()}))
"""

WITH_NOTHING = {
    'ops without torch say what to install': """
for name in ('mmengine', 'torch'):
    sys.modules[name] = None
assert 'pip install torch' in message_of(
    ImportError, __import__, 'sigplug.ops')
""",
    'ops and layers with torch alone': """
for name in ('mmengine', 'mmcv', 'mmdet', 'mmdet3d', 'numpy', 'packaging',
             'matplotlib', 'PIL', 'tqdm'):
    sys.modules[name] = None
import torch
import sigplug
from sigplug.ops import clip_sigmoid, generalized_mean
assert sigplug.__version__
assert clip_sigmoid(torch.zeros(1)).item() == 0.5
assert generalized_mean(torch.ones(1, 4), 3.0, 1).item() == 1

from sigplug.models import ClipSigmoid, GeM, GeMPyramid
x = torch.ones(2, 3, 4, 4)
assert ClipSigmoid(eps=0.1)(9 * x).eq(0.9).all()
assert GeM(p=[2.0, 3.0, 4.0], channels=3)(x).shape == (2, 3, 1, 1)
# What is missing otherwise.
message = message_of(ImportError, GeMPyramid, 5, inner=dict(type='FPN'))
assert 'pip install mmengine' in message, message
from sigplug.models.dense_heads import CenterHead
message = message_of(ImportError, CenterHead)
assert 'CenterHead needs mmdet3d and mmcv' in message, message
""",
}

WITH_TORCH = {
    'ops import and name nothing of the stack': """
import sigplug.ops
assert not imported('mmcv', 'mmdet', 'mmdet3d'), imported('mmcv', 'mmdet3d')
for name in [name for name in sys.modules if name.startswith('sigplug.ops')]:
    found = {str(getattr(value, '__module__', None) or getattr(
        value, '__name__', '')).split('.')[0]
        for value in vars(sys.modules[name]).values()}
    assert not found & {'mmengine', 'mmcv', 'mmdet', 'mmdet3d'}, name
""",
    # mmengine's and mmcv's scope, with mmdet3d not even imported.
    'bare names after a light import': """
import numpy as np
load = torch.load
import sigplug
# It changes the allow-list of checkpoints alone.
assert torch.load is load
assert np.__version__ > '2' or not hasattr(np, 'long')
# They are imported once a hook is built, not before.
assert not {'mmengine.hooks', 'mmengine.runner', 'mmengine.optim'} & set(
    sys.modules)
assert not imported('mmcv', 'mmdet', 'mmdet3d', 'nuscenes', 'numba')

from mmengine.registry import HOOKS, MODELS
from sigplug.models import ClipSigmoid, GeM, GeMNeck
for cls in (ClipSigmoid, GeM, GeMNeck):
    assert type(MODELS.build(dict(type=cls.__name__))) is cls

assert {'CheckLossHook', 'LiveLookHook'} <= set(HOOKS.module_dict)
hook = HOOKS.build(dict(type='HeatmapSaturationHook', interval=7))
from sigplug.engine.hooks import HeatmapSaturationHook
assert type(hook) is HeatmapSaturationHook and hook.interval == 7
assert HOOKS.get('sigplug.HeatmapSaturationHook') is HeatmapSaturationHook
# Pictures load their libraries when they are drawn.
assert not imported('tensorboard', 'mmdet', 'mmdet3d')
assert 'sigplug.visualization' not in sys.modules

from mmcv.cnn import ConvModule, build_activation_layer
assert type(build_activation_layer(dict(type='ClipSigmoid'))) is ClipSigmoid
conv = ConvModule(3, 4, 1, act_cfg=dict(type='ClipSigmoid'))
assert type(conv.activate) is ClipSigmoid
assert not imported('mmdet3d')
""",
}

WITHOUT_MMDET3D = {
    # Layers and necks work; the parts on mmdet3d say what is missing.
    'without mmdet3d': """
sys.modules['mmdet3d'] = None
import sigplug, sigplug.ops
from mmengine.registry import MODELS
from sigplug.models import ClipSigmoid, GeM, GeMNeck

for prefix in ('', 'sigplug.'):
    act = MODELS.build(dict(type=f'{prefix}ClipSigmoid', eps=0.1))
    assert type(act) is ClipSigmoid and act(torch.ones(1) * 9) == 0.9
    neck = MODELS.build(dict(type=f'{prefix}GeMNeck'))
    assert type(neck) is GeMNeck and neck(torch.ones(2, 3, 4, 4)).sum() == 6
    assert type(MODELS.build(dict(type=f'{prefix}GeM'))) is GeM

for name in ('CenterHead', 'GeMPillarFeatureNet'):
    message = message_of(
        ImportError, MODELS.build, dict(type=f'sigplug.{name}', in_channels=4))
    for word in (f'sigplug.{name}', 'mmdet3d', 'Install'):
        assert word in message, message
    assert 'not in the' not in message, message

# The heads of mmdet do not need mmdet3d.
head = MODELS.build(dict(
    type='sigplug.CenterNetHead', in_channels=4, feat_channels=4,
    num_classes=1))
assert type(head).__module__ == 'sigplug.models.dense_heads.heatmap_heads'
""",
    # Each head on mmdet says what is missing.
    'without mmdet': """
sys.modules['mmdet'] = None
from mmengine.registry import MODELS
for name in ('CenterNetHead', 'CornerHead'):
    message = message_of(
        ImportError, MODELS.build, dict(type=f'sigplug.{name}', in_channels=4))
    assert f'sigplug.{name} needs mmdet and' in message, message
assert type(MODELS.build(dict(type='sigplug.GeM'))).__name__ == 'GeM'
""",
    # mmdet and mmdet3d assert the versions of what they stand on.
    'without a fitting mmdet3d': """
sys.path.insert(0, 'other')
from mmengine.registry import MODELS
neck = MODELS.build(dict(type='sigplug.GeMNeck'))
assert type(neck).__module__ == 'sigplug.models.necks.gem_neck'
message = message_of(
    ImportError, MODELS.build, dict(type='sigplug.CenterHead'))
assert 'MMCV==2.2.0 is used but incompatible' in message, message
""",
}

STACK = '''
import mmcv.cnn
import mmdet.models
import mmdet3d.models
from mmcv.cnn import ConvModule, build_activation_layer
from mmdet3d.registry import HOOKS as MMDET3D_HOOKS
from mmdet3d.registry import MODELS as MMDET3D
from mmengine.registry import HOOKS, MODELS, init_default_scope


def first(scope, build, cfg):
    """The first thing that a process builds, and then everything else."""
    if scope is not None:
        init_default_scope(scope)
    assert not imported('sigplug')
    built = [build(dict(cfg))]
    built += [MODELS.build(dict(type=name)) for name in (
        'sigplug.GeM', 'sigplug.GeMPillarFeatureNet', 'ClipSigmoid', 'GeM')]
    built += [HOOKS.build(dict(type=name, interval=3)) for name in (
        'sigplug.HeatmapSaturationHook', 'HeatmapSaturationHook')]
    names = [type(part).__module__ for part in built]
    assert all(name.startswith('sigplug.') for name in names), names
    assert built[-1].interval == 3


ACT = dict(type='sigplug.ClipSigmoid')
HEAD = dict(
    type='sigplug.CenterNetHead', in_channels=4, feat_channels=4,
    num_classes=1)
PILLARS = dict(type='sigplug.GeMPillarFeatureNet')
HOOK = dict(type='sigplug.HeatmapSaturationHook')
'''
WITH_ALL = {f'first {case}': f'first({case})' for case in (
    'None, build_activation_layer, ACT',
    'None, lambda cfg: ConvModule(3, 4, 1, act_cfg=cfg).activate, ACT',
    'None, MMDET3D.build, PILLARS', "'mmdet', MODELS.build, HEAD",
    "'sigplug', MODELS.build, dict(type='sigplug.GeMNeck')",
    'None, MMDET3D_HOOKS.build, HOOK', "'mmdet3d', HOOKS.build, HOOK")}

STAGES = [('', WITH_NOTHING), ('import torch', WITH_TORCH),
          ('import mmcv.ops\nimport mmengine.registry', WITHOUT_MMDET3D)]
# Beside OneDL's forks mmdet3d can be imported by sigplug alone.
if os.environ.get(SWITCH) != '1':
    STAGES.append((STACK, WITH_ALL))


@pytest.fixture(scope='module')
def errors(tmp_path_factory):
    """What went wrong in each case."""
    folder = tmp_path_factory.mktemp('registry')
    package = folder / 'other/mmdet3d'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text(
        "assert False, 'MMCV==2.2.0 is used but incompatible.'\n")
    done = subprocess.run(
        [sys.executable, '-c', PRELUDE], cwd=folder, text=True,
        env=dict(
            os.environ, OMP_NUM_THREADS='1', **{SWITCH: ''},
            PYTHONPATH=str(Path(find_spec('sigplug').origin).parents[1])),
        input=json.dumps(STAGES), capture_output=True)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith('{'):
            found.update(json.loads(line))
    return found


@pytest.mark.parametrize(
    'name', [name for _, cases in STAGES for name in cases])
def test_case(errors, name):
    assert not errors[name], errors[name]
