"""What is in the sdist and the wheel, and that the wheel works."""
import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
# What an OpenMMLab environment brings and `pip install .` must leave alone.
HOST_PACKAGES = {'torch', 'mmengine', 'mmcv', 'mmdet', 'mmdet3d'}
LISTS = ('build', 'runtime', 'mminstall', 'optional', 'tests', 'docs')


def read_requirements(name):
    text = (ROOT / 'requirements' / f'{name}.txt').read_text()
    lines = (line.partition('#')[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


def read_version():
    namespace = {}
    exec((ROOT / 'sigplug' / 'version.py').read_text(), namespace)
    return namespace['__version__']


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The sdist of a copy of the tree, and the wheel made from that sdist.

    As in pip's isolated build, which has setuptools alone.
    """
    folder = tmp_path_factory.mktemp('build')
    tree = folder / 'tree'
    shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(
        '.git', '.venv*', '.*_cache', '.coverage*', '.hypothesis',
        '*.egg-info', '__pycache__', 'build', 'dist', 'data', 'work_dirs'))
    (folder / 'sitecustomize.py').write_text(
        'import sys\n'
        f'sys.modules.update(dict.fromkeys({HOST_PACKAGES}))\n')

    def build(kind, cwd):
        code = ('from setuptools import build_meta\n'
                f'print(build_meta.build_{kind}({str(folder)!r}))')
        out = subprocess.run(
            [sys.executable, '-c', code], cwd=cwd, check=True,
            env=dict(os.environ, PYTHONPATH=str(folder)),
            capture_output=True, text=True).stdout
        return folder / out.splitlines()[-1]

    sdist = build('sdist', tree)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / 'unpacked')
    source, = (folder / 'unpacked').iterdir()
    return sdist, build('wheel', source)


def list_tree(folder, *suffixes):
    return {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / folder).rglob('*')
        if p.suffix in suffixes and '__pycache__' not in p.parts
    }


def test_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
    modules = {n for n in names if '.dist-info/' not in n}
    for_mim = {f'sigplug/.mim/{name}' for name in
               list_tree('configs', '.py', '.yml')
               | list_tree('tools', '.py', '.sh', '.md')}
    # With the mark py.typed, else type checkers ignore the annotations.
    assert modules == for_mim | {'sigplug/.mim/model-index.yml'} | list_tree(
        'sigplug', '.py', '.cpp', '.h', '.typed')
    assert any(n.endswith('.dist-info/licenses/LICENSE') for n in names)
    assert built[1].name == f'sigplug-{read_version()}-py3-none-any.whl'


def test_sdist_holds_what_a_user_needs(built):
    with tarfile.open(built[0]) as archive:
        names = {n.name.partition('/')[2] for n in archive if n.isfile()}
    wanted = list_tree('tests', '.py') | list_tree('examples', '.py')
    wanted |= list_tree('requirements', '.txt') | {
        'LICENSE', 'README.md', 'README_zh-CN.md', 'CONTRIBUTING.md',
        'CHANGELOG.md', 'CITATION.cff',
        'setup.py', 'pyproject.toml', 'model-index.yml',
        'sigplug/.mim/tools/train.py', 'tests/public_api.txt',
        'docs/conf.py', 'docs/api/ops.md', 'docs/images/data_flow.svg'}
    assert wanted <= names
    assert not [n for n in names
                if re.search(r'__pycache__|\.pyc$|^docs/_build', n)]


def test_metadata(built):
    with zipfile.ZipFile(built[1]) as archive:
        name, = (n for n in archive.namelist() if n.endswith('/METADATA'))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata['Version'] == read_version()
    assert metadata['Requires-Python'] == '>=3.10'
    required = {str(Requirement(r)) for r in metadata.get_all('Requires-Dist')
                if 'extra ==' not in r}
    assert required == {str(r) for r in read_requirements('runtime')}
    assert {'mim', 'onedl', 'optional', 'tests', 'docs', 'export',
            'tensorboard', 'spconv'} == set(metadata.get_all('Provides-Extra'))


def test_model_index_names_the_metafiles_of_all_folders():
    words = (ROOT / 'model-index.yml').read_text().split()
    assert [word for word in words if word not in ('Import:', '-')] == sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'configs').glob('*/metafile.yml'))


@pytest.fixture(scope='module')
def site(built, tmp_path_factory):
    """Where the wheel is installed."""
    folder = tmp_path_factory.mktemp('site')
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps',
         '--no-index', '--target', folder, built[1]], check=True)
    return folder


@pytest.mark.parametrize('command, option', [
    (['sigplug/.mim/tools/dataset_converters/create_synthetic_nuscenes.py'],
     '--out'),
    (['bin/sigplug', 'migrate'], '--pillar'),
    (['bin/sigplug', 'doctor'], '--compile'),
])
def test_tools_of_the_wheel_find_their_parts(site, tmp_path, command, option):
    done = subprocess.run(
        [sys.executable, site / command[0], *command[1:], '--help'],
        cwd=tmp_path, text=True, env=dict(os.environ, PYTHONPATH=str(site)),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 and option in done.stdout, done.stdout


@pytest.mark.slow
def test_mim_makes_data_trains_and_tests_from_the_wheel(site, tmp_path):
    config = ('centerpoint_pillar04_second_secfpn_gem_1xb2-onecycle-5e_'
              'nus-mini-3d.py')
    environment = dict(
        os.environ, OMP_NUM_THREADS='1', SIGPLUG_DATA_ROOT='made/',
        PYTHONPATH=str(site))

    def mim(*arguments):
        done = subprocess.run(
            [sys.executable, '-m', 'mim', *arguments], cwd=tmp_path,
            env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
        assert str(site / 'sigplug/.mim/tools') in done.stdout
        return done.stdout

    mim('run', 'sigplug', 'create_synthetic_nuscenes', '--out', 'made',
        '--samples-per-scene', '3')
    mim('train', 'sigplug', config, '--work-dir', 'out', '--cfg-options',
        'train_cfg.max_epochs=1', 'train_cfg.val_begin=9',
        'train_dataloader.dataset.indices=4')
    out = mim('test', 'sigplug', config, '--checkpoint', 'out/epoch_1.pth',
              '--work-dir', 'out')
    assert '\nNDS: ' in out
    assert {path.name for path in tmp_path.iterdir()} == {'made', 'out'}


def test_runtime_leaves_the_host_environment_alone():
    for requirement in read_requirements('runtime'):
        assert canonicalize_name(requirement.name) not in HOST_PACKAGES
        assert not requirement.specifier, requirement


def test_runtime_names_what_the_package_imports():
    imported = set()
    for path in (ROOT / 'sigplug').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {a.name.partition('.')[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition('.')[0])
    imported -= sys.stdlib_module_names | HOST_PACKAGES | {'sigplug'}
    # Imported lazily, or by a part that is asked for by name.
    optional = {'nuscenes', 'triton', 'onnxruntime'}
    names = {{'PIL': 'pillow'}.get(n, n) for n in imported - optional}
    assert names <= {r.name for r in read_requirements('runtime')}


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12'])
def test_every_listed_package_has_one_pin_and_in_one_place(python):
    pins = {}
    for requirement in read_requirements('constraints'):
        marker = requirement.marker
        if marker is None or marker.evaluate({'python_version': python}):
            name = canonicalize_name(requirement.name)
            assert name not in pins, f'{name} twice for Python {python}'
            pin, = requirement.specifier
            assert pin.operator == '==', requirement
            pins[name] = pin.version
    for requirement in sum(map(read_requirements, LISTS), []):
        version = pins.get(canonicalize_name(requirement.name))
        assert version in requirement.specifier, f'{requirement}: {version}'
        assert {s.operator for s in requirement.specifier} <= {'>=', '<'}
