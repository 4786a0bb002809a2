"""The joined sources of mmcv, held to the compiler."""
import re
import subprocess

from conftest import load_tool

join_mmcv = load_tool('misc/join_mmcv.py')


def check(unit, folder):
    subprocess.run(['c++', '-xc++', '-fsyntax-only', f'-I{folder}', unit],
                   check=True)


def test_joined_sources_compile(tmp_path):
    # What clashes in mmcv's files, and what does not.
    align = """#include "pytorch_cpp_helper.hpp"
        template <class T> struct PreCalc {{ T pos; }};
        template <class T> void add(T* address, const T& val) {{}}
        template <class T> void bilinear_interpolate_gradient(T y) {{}}
        void {0}(float* x) {{ add(x, PreCalc<float>().pos); }}"""
    texts = dict(
        bezier_align=align.format('f'), roi_align=align.format('g'),
        psamask='#define min(a, b) (a < b ? a : b)\n#define max(a, b) b',
        voxelization='#include <algorithm>\nint h() { return '
        'std::min(1, std::max(2, 3)); } int add(int x) { return x; }')
    for part in (tmp_path, tmp_path / 'cpu'):
        part.mkdir(exist_ok=True)
        for name, text in texts.items():
            (part / (name + '.cpp')).write_text(text)
    for name in ('pytorch_cpp_helper', 'pytorch_device_registry'):
        (tmp_path / (name + '.hpp')).write_text('#pragma once')
    join_mmcv.join_sources(tmp_path)
    for part in (tmp_path, tmp_path / 'cpu'):
        unit, = part.glob('*.cpp')
        check(unit, tmp_path)


def test_joined_cuda_sources_compile(tmp_path):
    # Each defines the same names, but for those that only one may have.
    cuda = tmp_path / 'cuda'
    cuda.mkdir()
    (tmp_path / 'torch').mkdir()
    for name in ('torch/script.h', 'pytorch_cuda_helper.hpp'):
        (tmp_path / name).write_text('#pragma once\nstruct Point {};')
    kept = cuda / 'carafe_cuda.cu'
    kept.write_text('#error not joined')
    for names in join_mmcv.CUDA_UNITS.values():
        for name in names.split():
            text = f'typedef int Types_{name};'
            for clash in (*join_mmcv.CUDA_CLASHES,
                          *join_mmcv.CUDA_CLASHES_OF.get(f'{name}_cuda', ())):
                text += f'int {clash}() {{ return 0; }}'
            if name == 'scatter_points':
                text += 'enum { SUM, MEAN, MAX };'
            (cuda / f'{name}_cuda.cu').write_text(text)
    join_mmcv.join_sources(tmp_path)
    units = sorted(path.stem for path in cuda.glob('*.cu'))
    assert units == sorted([*join_mmcv.CUDA_UNITS, 'carafe_cuda'])
    for name in join_mmcv.CUDA_UNITS:
        text = (cuda / f'{name}.cu').read_text()
        assert len(re.findall('_cuda.inc', text)) == len(
            join_mmcv.CUDA_UNITS[name].split())
        check(cuda / f'{name}.cu', tmp_path)
