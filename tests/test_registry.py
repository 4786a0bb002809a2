"""Names in configs resolve from every scope, with and without mmdet3d.

What is imported by then matters, hence a fresh interpreter for each case.
"""
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from conftest import SWITCH, mmdet3d_comes_first

PACKAGE_PARENT = Path(find_spec('sigplug').origin).parents[1]

# What every case may use.
PRELUDE = """
import sys


def imported(*names):
    return sorted(set(names) & {name.split('.')[0] for name in sys.modules})


def message_of(error, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except error as caught:
        return str(caught)
    raise AssertionError(f'{function} did not raise {error}')
"""


def run(code, cwd):
    """Run code in a fresh interpreter, outside the repository."""
    done = subprocess.run(
        [sys.executable, '-c', PRELUDE + code],
        cwd=cwd,
        env=dict(
            os.environ, PYTHONPATH=str(PACKAGE_PARENT), OMP_NUM_THREADS='1',
            **{SWITCH: ''}),
        capture_output=True,
        text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_forks(code, count, cwd):
    """Run each of CASES in a fork of one fresh interpreter, which is quick."""
    out = run('import os\nimport traceback\nfrom functools import partial\n'
              + code + """
for name, case in CASES.items():
    pid = os.fork()
    if pid == 0:
        try:
            case()
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    print(name, 'failed' if status else 'done', flush=True)
""", cwd)
    assert 'failed' not in out and out.count('done') == count, out


def test_ops_import_nothing_of_the_stack_and_need_no_mmengine(tmp_path):
    run("""
import sigplug.ops
assert not imported('mmcv', 'mmdet', 'mmdet3d'), imported('mmcv', 'mmdet3d')

# The modules of sigplug.ops name nothing of OpenMMLab themselves.
for name in [name for name in sys.modules if name.startswith('sigplug.ops')]:
    found = {str(getattr(value, '__module__', None) or getattr(
        value, '__name__', '')).split('.')[0]
        for value in vars(sys.modules[name]).values()}
    assert not found & {'mmengine', 'mmcv', 'mmdet', 'mmdet3d'}, name
""", tmp_path)
    run("""
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
""", tmp_path)


def test_ops_without_torch_say_what_to_install(tmp_path):
    run("""
for name in ('mmengine', 'torch'):
    sys.modules[name] = None
assert 'pip install torch' in message_of(
    ImportError, __import__, 'sigplug.ops')
""", tmp_path)


def test_bare_names_after_a_light_import(tmp_path):
    """mmengine's and mmcv's scope, with mmdet3d not even imported."""
    run("""
import sigplug
# They are imported once a hook is built, not before.
assert 'mmengine.hooks' not in sys.modules
assert not imported('mmcv', 'mmdet3d', 'nuscenes', 'numba')

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
""", tmp_path)


WITHOUT = {
    # Layers and necks work; the parts on mmdet3d say what is missing.
    'mmdet3d': """
sys.modules['mmdet3d'] = None
import torch
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
    'mmdet': """
sys.modules['mmdet'] = None
from mmengine.registry import MODELS
for name in ('CenterNetHead', 'CornerHead'):
    message = message_of(
        ImportError, MODELS.build, dict(type=f'sigplug.{name}', in_channels=4))
    assert f'sigplug.{name} needs mmdet and' in message, message
assert type(MODELS.build(dict(type='sigplug.GeM'))).__name__ == 'GeM'
""",
    # mmdet and mmdet3d assert the versions of what they stand on.
    'a fitting mmdet3d': """
from mmengine.registry import MODELS
neck = MODELS.build(dict(type='sigplug.GeMNeck'))
assert type(neck).__module__ == 'sigplug.models.necks.gem_neck'
message = message_of(
    ImportError, MODELS.build, dict(type='sigplug.CenterHead'))
assert 'MMCV==2.2.0 is used but incompatible' in message, message
""",
}


def test_without_parts_of_the_stack(tmp_path):
    # The folder in which Python is started comes first in its path.
    package = tmp_path / 'mmdet3d'
    package.mkdir()
    (package / '__init__.py').write_text(
        "assert False, 'MMCV==2.2.0 is used but incompatible.'\n")
    run_forks(f"""
import torch
import mmcv.ops
import mmengine.registry
CASES = {{name: partial(exec, code, globals())
         for name, code in {WITHOUT!r}.items()}}
""", len(WITHOUT), tmp_path)


@mmdet3d_comes_first
def test_prefixed_names_without_any_import(tmp_path):
    """The first look-up from each scope, each in a fork of one start."""
    run_forks('''
import mmcv.cnn
import mmdet.models
import mmdet3d.models
from mmcv.cnn import ConvModule, build_activation_layer
from mmdet3d.registry import HOOKS as MMDET3D_HOOKS
from mmdet3d.registry import MODELS as MMDET3D
from mmengine.registry import HOOKS, MODELS, init_default_scope


def first(scope, registry, cfg):
    """The first thing that a process builds, and then everything else."""
    if scope is not None:
        init_default_scope(scope)
    assert not imported('sigplug')
    build = getattr(registry, 'build', registry)
    built = [build(dict(cfg))]
    built += [MODELS.build(dict(type=name)) for name in (
        'sigplug.GeM', 'sigplug.GeMPillarFeatureNet', 'ClipSigmoid', 'GeM')]
    built += [HOOKS.build(dict(type=name, interval=3)) for name in (
        'sigplug.HeatmapSaturationHook', 'HeatmapSaturationHook')]
    names = [type(part).__module__ for part in built]
    assert all(name.startswith('sigplug.') for name in names), names
    assert built[-1].interval == 3


HEAD = dict(
    type='sigplug.CenterNetHead', in_channels=4, feat_channels=4,
    num_classes=1)
PILLARS = dict(type='sigplug.GeMPillarFeatureNet')
HOOK = dict(type='sigplug.HeatmapSaturationHook')
CASES = {}
for scope, registry, cfg in (
        (None, build_activation_layer, dict(type='sigplug.ClipSigmoid')),
        (None, lambda cfg: ConvModule(3, 4, 1, act_cfg=cfg).activate,
         dict(type='sigplug.ClipSigmoid')),
        (None, MMDET3D, PILLARS), ('mmdet', MODELS, HEAD),
        ('sigplug', MODELS, dict(type='sigplug.GeMNeck')),
        (None, MMDET3D_HOOKS, HOOK), ('mmdet3d', HOOKS, HOOK)):
    CASES[f'{cfg["type"]} {scope} {registry}'[:60]] = partial(
        first, scope, registry, cfg)
''', 7, tmp_path)
