import pytest

from sigplug.ops import backends


@pytest.fixture(scope='module', params=['eager', 'auto'])
def backend(request):
    """What a test asks of an operation, of its plain form and its kernels."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(backends.VARIABLE, request.param)
        yield
