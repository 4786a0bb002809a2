import ast
import json
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
    """The sdist of a copy of the tree, and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp('build')
    tree = folder / 'tree'
    shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(
        '.git', '.venv*', '.*_cache', '.coverage*', '.hypothesis',
        '*.egg-info', '__pycache__', 'build', 'dist', 'data', 'work_dirs'))
    code = ('from setuptools import build_meta as b; '
            'print(b.build_{}({!r}))')

    def build(kind, cwd):
        out = subprocess.run(
            [sys.executable, '-c', code.format(kind, str(folder))], cwd=cwd,
            check=True, capture_output=True, text=True).stdout
        return folder / out.splitlines()[-1]

    sdist = build('sdist', tree)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / 'unpacked')
    source, = (folder / 'unpacked').iterdir()
    return sdist, build('wheel', source)


@pytest.fixture(scope='module')
def metadata(built):
    with zipfile.ZipFile(built[1]) as archive:
        name, = (n for n in archive.namelist() if n.endswith('/METADATA'))
        return Parser().parsestr(archive.read(name).decode())


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
    assert modules == for_mim | {'sigplug/.mim/model-index.yml'} | list_tree(
        'sigplug', '.py', '.cpp', '.h', '.typed')
    # Else type checkers ignore the annotations.
    assert 'sigplug/py.typed' in modules
    assert any(n.endswith('.dist-info/licenses/LICENSE') for n in names)
    assert built[1].name == f'sigplug-{read_version()}-py3-none-any.whl'


def test_sdist_holds_what_a_user_needs(built):
    with tarfile.open(built[0]) as archive:
        names = {n.name.partition('/')[2] for n in archive if n.isfile()}
    wanted = list_tree('sigplug', '.py') | list_tree('tests', '.py')
    wanted |= list_tree('configs', '.py') | list_tree('tools', '.py', '.sh')
    wanted |= list_tree('requirements', '.txt')
    wanted |= {'LICENSE', 'README.md', 'README_zh-CN.md', 'CONTRIBUTING.md',
               'setup.py', 'pyproject.toml', 'model-index.yml',
               'sigplug/py.typed', 'tests/public_api.txt',
               'sigplug/.mim/tools/train.py', 'docs/conf.py',
               'docs/api/ops.md', 'docs/images/data_flow.svg'}
    assert wanted <= names
    assert not [n for n in names if n.startswith('docs/_build')]
    assert not [n for n in names if re.search(r'__pycache__|\.pyc$', n)]


def test_builds_where_there_is_no_torch(built, tmp_path):
    """As in pip's isolated build, which has setuptools alone."""
    (tmp_path / 'sitecustomize.py').write_text(
        'import sys\n'
        'for name in ("torch", "mmengine", "mmcv", "mmdet", "mmdet3d"):\n'
        '    sys.modules[name] = None\n')
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path)
    source, = tmp_path.glob('sigplug-*')
    subprocess.run(
        [sys.executable, '-c', 'from setuptools import build_meta as b; '
         f'b.build_wheel({str(tmp_path)!r})'], cwd=source, check=True,
        env=dict(os.environ, PYTHONPATH=str(tmp_path)), capture_output=True)
    assert list(tmp_path.glob('*.whl'))


def test_links_for_mim_lead_to_configs_and_tools():
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (ROOT / 'sigplug' / '.mim' / name).samefile(ROOT / name)


def test_model_index_names_the_metafiles_of_all_folders():
    index = (ROOT / 'model-index.yml').read_text()
    assert re.findall(r'configs/\S+', index) == sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'configs').glob('*/metafile.yml'))
    assert set(index.split()) - {'Import:', '-'} == set(
        re.findall(r'configs/\S+', index))


@pytest.fixture(scope='module')
def site(built, tmp_path_factory):
    """Where the wheel is installed."""
    folder = tmp_path_factory.mktemp('site')
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps',
         '--no-index', '--target', folder, built[1]], check=True)
    return folder


def test_config_elsewhere_reads_one_of_the_wheel(site, tmp_path):
    (tmp_path / 'mine.py').write_text(
        'from mmengine.config import read_base\n'
        'with read_base():\n'
        '    from sigplug.configs.centerpoint.centerpoint_pillar04_second_'
        'secfpn_gem_1xb4_onecycle_8e_nus_mini_3d import *\n'
        'model.update(dict(pts_voxel_encoder=dict(p=4.0)))\n')
    done = subprocess.run(
        [sys.executable, '-c', 'from mmengine.config import Config\n'
         'model = Config.fromfile("mine.py").model\n'
         'print(model.type.__name__, model.pts_voxel_encoder.p)'],
        cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(site)),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.stdout.splitlines()[-1:] == ['CenterPoint 4.0'], done.stdout


@pytest.mark.slow
def test_mim_trains_and_tests_from_the_wheel(site, synthetic_nuscenes,
                                             tmp_path):
    work = tmp_path / 'elsewhere'
    work.mkdir()
    config = ('centerpoint_pillar04_second_secfpn_gem_1xb4-onecycle-8e_'
              'nus-mini-3d.py')
    environment = dict(
        os.environ, PYTHONPATH=str(site), OMP_NUM_THREADS='1',
        SIGPLUG_DATA_ROOT=f'{synthetic_nuscenes}/')

    def mim(*arguments):
        done = subprocess.run(
            [sys.executable, '-m', 'mim', *arguments], cwd=work,
            env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
        assert str(site / 'sigplug/.mim/tools') in done.stdout
        return done.stdout

    mim('train', 'sigplug', config, '--work-dir', 'out', '--cfg-options',
        'train_cfg.max_epochs=1', 'train_cfg.val_begin=9',
        'train_dataloader.dataset.indices=4')
    out = mim('test', 'sigplug', config, '--checkpoint', 'out/epoch_1.pth',
              '--work-dir', 'out')
    assert 'NuScenes metric/pred_instances_3d_NuScenes/NDS' in out
    assert {path.name for path in work.iterdir()} == {'out'}


def test_metadata(metadata):
    assert metadata['Name'] == 'sigplug'
    assert metadata['Version'] == read_version()
    assert metadata['Requires-Python'] == '>=3.10'
    assert metadata['Description-Content-Type'] == 'text/markdown'
    assert metadata.get_payload().strip()
    plain = {str(Requirement(r)) for r in metadata.get_all('Requires-Dist')
             if 'extra ==' not in r}
    assert plain == {str(r) for r in read_requirements('runtime')}
    assert {'mim', 'optional', 'tests'} == set(
        metadata.get_all('Provides-Extra'))


def test_runtime_leaves_the_host_environment_alone():
    for requirement in read_requirements('runtime'):
        assert canonicalize_name(requirement.name) not in HOST_PACKAGES
        assert not requirement.specifier, requirement


def test_pip_would_install_sigplug_only(built):
    """pip's own resolver, in the environment that runs the tests."""
    done = subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--dry-run', '--no-index',
         '--ignore-requires-python', '--quiet', '--report', '-', built[1]],
        check=True, capture_output=True, text=True)
    names = {item['metadata']['name']
             for item in json.loads(done.stdout)['install']}
    # Nothing at all where it is installed already, in this version.
    assert names <= {'sigplug'}


def test_runtime_names_what_the_package_imports():
    imported = set()
    for path in (ROOT / 'sigplug').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {a.name.partition('.')[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition('.')[0])
    imported -= sys.stdlib_module_names | HOST_PACKAGES | {'sigplug'}
    optional = {'nuscenes', 'triton'}  # imported lazily
    names = {{'PIL': 'pillow'}.get(n, n) for n in imported - optional}
    assert names <= {r.name for r in read_requirements('runtime')}


def test_setup_py_imports_neither_torch_nor_sigplug():
    tree = ast.parse((ROOT / 'setup.py').read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import)
             for a in n.names}
    names |= {n.module for n in ast.walk(tree)
              if isinstance(n, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names | {'setuptools'}


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12'])
def test_every_listed_package_has_one_pin(python):
    pins = {}
    for requirement in read_requirements('constraints'):
        marker = requirement.marker
        if marker is None or marker.evaluate({'python_version': python}):
            name = canonicalize_name(requirement.name)
            assert name not in pins, f'{name} twice for Python {python}'
            operator, = (s.operator for s in requirement.specifier)
            assert operator == '==', requirement
            pins[name] = requirement.specifier
    for name in LISTS:
        for requirement in read_requirements(name):
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin is not None, f'{requirement} has no pin'
            version, = (s.version for s in pin)
            assert version in requirement.specifier, requirement


def test_versions_are_pinned_in_one_place():
    for name in LISTS:
        for requirement in read_requirements(name):
            assert {s.operator for s in requirement.specifier} <= {'>=', '<'}


def test_installed_packages_fit_one_another():
    done = subprocess.run(
        [sys.executable, '-m', 'pip', 'check'], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_python_files_lie_in_packages():
    """A folder without ``__init__.py`` would be left out of the wheel."""
    for path in (ROOT / 'sigplug').rglob('*.py'):
        assert (path.parent / '__init__.py').is_file(), path
