"""The examples in the docstrings are run."""
import doctest
import importlib
from pathlib import Path

import pytest
import torch

import sigplug

MODULES = [
    ('sigplug.ops.clip_sigmoid', 1),
    ('sigplug.ops.gaussian_focal_loss', 1),
    ('sigplug.ops.gem_pool', 1),
    ('sigplug.ops.generalized_mean', 1),
    ('sigplug.ops.segment_generalized_mean', 1),
    ('sigplug.models.layers.clip_sigmoid', 1),
    ('sigplug.models.layers.gem', 1),
    ('sigplug.models.layers.gem_context', 1),
    ('sigplug.models.necks.gem_neck', 1),
    ('sigplug.models.necks.gem_pyramid', 1),
]


def test_no_example_is_forgotten():
    root = Path(sigplug.__file__).parent
    found = {'.'.join(path.relative_to(root.parent).with_suffix('').parts)
             for path in root.rglob('*.py') if '>>>' in path.read_text()}
    assert found == {name for name, _ in MODULES}


@pytest.mark.parametrize('name, examples', MODULES)
def test_examples(name, examples):
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for test in finder.find(
        module, extraglobs=dict(torch=torch)) if test.examples]
    assert len(tests) >= examples
    runner = doctest.DocTestRunner(verbose=False)
    report = []
    for test in tests:
        runner.run(test, out=report.append)
    assert runner.failures == 0, ''.join(report)
