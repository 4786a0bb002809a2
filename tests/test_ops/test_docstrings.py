"""The examples in the docstrings are run."""
import doctest
import importlib

import pytest
import torch


@pytest.mark.parametrize('name, examples', [
    ('sigplug.ops.clip_sigmoid', 1),
    ('sigplug.ops.gem_pool', 1),
    ('sigplug.ops.generalized_mean', 1),
    ('sigplug.ops.segment_generalized_mean', 1),
    ('sigplug.models.layers.clip_sigmoid', 1),
    ('sigplug.models.layers.gem', 1),
    ('sigplug.models.layers.gem_context', 1),
    ('sigplug.models.necks.gem_neck', 1),
    ('sigplug.models.necks.gem_pyramid', 1),
])
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
