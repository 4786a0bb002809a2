"""The examples in the docstrings are run."""
import doctest
import importlib
from pathlib import Path

import pytest
import torch

import sigplug

ROOT = Path(sigplug.__file__).parent
MODULES = ['.'.join(path.relative_to(ROOT.parent).with_suffix('').parts)
           for path in sorted(ROOT.rglob('*.py')) if '>>>' in path.read_text()]


@pytest.mark.parametrize('name', MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(
        module, extraglobs=dict(torch=torch)) if test.examples]
    assert tests
    runner = doctest.DocTestRunner(verbose=False)
    report = []
    for test in tests:
        runner.run(test, out=report.append)
    assert runner.failures == 0, ''.join(report)
