"""Package metadata of sigplug; needs neither torch nor sigplug itself."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding='utf-8')


def read_version() -> str:
    return re.search(r"(?m)^__version__ = '(.+)'$",
                     read('sigplug/version.py'))[1]


def read_requirements(name: str) -> list[str]:
    lines = (line.partition('#')[0].strip()
             for line in read(f'requirements/{name}.txt').splitlines())
    return [line for line in lines if line]


setup(
    name='sigplug',
    version=read_version(),
    description='Clipped sigmoid and generalised-mean pooling for heatmap '
    'detectors of the OpenMMLab stack',
    long_description=read('README.md'),
    long_description_content_type='text/markdown',
    author='The sigplug authors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords='3D object detection, CenterPoint, GeM pooling, OpenMMLab',
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Operating System :: MacOS',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['sigplug', 'sigplug.*']),
    package_data={
        # The CPU kernels, compiled on the machine that first calls them.
        'sigplug.ops.cpu_kernels': ['*.cpp', '*.h'],
        # The mark of typed code, and where mim looks: links here, copies in a
        # wheel.
        'sigplug': [
            'py.typed', '.mim/model-index.yml', '.mim/configs/**/*.py',
            '.mim/configs/**/*.yml', '.mim/tools/**/*.py',
            '.mim/tools/**/*.sh', '.mim/tools/**/*.md'
        ],
    },
    entry_points={'console_scripts': ['sigplug = sigplug.__main__:main']},
    install_requires=read_requirements('runtime'),
    extras_require={
        'mim': read_requirements('mminstall'),
        'onedl': read_requirements('onedl'),
        'optional': read_requirements('optional'),
        'spconv': read_requirements('spconv'),
        'tests': read_requirements('tests'),
        'docs': read_requirements('docs'),
        'export': ['onnx', 'onnxruntime', 'onnxscript'],
        'tensorboard': ['tensorboard'],
    },
    zip_safe=False)
