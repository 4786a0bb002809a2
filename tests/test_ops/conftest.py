import os

import pytest

from sigplug.ops import backends


@pytest.fixture(scope='module', params=['eager', 'auto'], autouse=True)
def backend(request):
    """Every test of an operation holds its plain form and its kernels."""
    before = os.environ.get(backends.VARIABLE)
    os.environ[backends.VARIABLE] = request.param
    yield request.param
    if before is None:
        del os.environ[backends.VARIABLE]
    else:
        os.environ[backends.VARIABLE] = before
