"""What the tests of several tools share."""
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools/analysis_tools'


@pytest.fixture(scope='module')
def tools_on_path():
    """As for an analysis tool that is run, whose folder comes first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        yield
