"""The examples run, draw, and say what their texts claim."""
import re
import runpy

import matplotlib.image
import matplotlib.pyplot as plt
import pytest
from conftest import REPOSITORY, mmdet3d_comes_first


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run an example here, which is quicker; return what it printed."""
    monkeypatch.chdir(tmp_path)
    plt.switch_backend('Agg')

    def run(name, *arguments):
        path = str(REPOSITORY / f'examples/{name}.py')
        monkeypatch.setattr('sys.argv', [path, *arguments])
        runpy.run_path(path, run_name='__main__')
        picture = matplotlib.image.imread(f'{name}.png')
        assert picture.shape[0] > 300 and picture.std() > 0.1
        return capsys.readouterr().out

    yield run
    plt.close('all')


@pytest.mark.parametrize('name', [
    pytest.param('center_head', marks=mmdet3d_comes_first), 'clip_sigmoid',
    'gem'])
def test_help_does_not_run_it(name, run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(name, '--help')
    assert f'{name}.png' in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_clip_sigmoid(run):
    found = re.findall(r'object (\S+), cells without gradient (\d+)',
                       run('clip_sigmoid'))
    (zero, dead), (through, none), (exact, no) = found
    assert float(zero) == 0 and int(dead) > 1000
    assert float(through) > 0.01 and int(none) == 0
    # log(p) (1 - p)^2 of a score near 0 has the slope 1 in the logit.
    assert float(exact) == pytest.approx(1, abs=0.05) and int(no) == 0


def test_gem(run):
    three, p, value = map(float, re.fullmatch(
        r'p = 3 gives ([\d.]+), the trained p = ([\d.]+) gives ([\d.]+)\n',
        run('gem')).groups())
    assert 0.1 < three < 0.6 and p > 3
    assert value == pytest.approx(0.6, abs=0.01)


@mmdet3d_comes_first
def test_center_head(run):
    printed = run('center_head').splitlines()
    stock, = (x for x in printed if x.startswith('stock '))
    ours, = (x for x in printed if x.startswith('sigplug '))
    assert stock.removeprefix('stock ') == ours.removeprefix('sigplug ')
    last, = (x for x in printed if x.startswith('after'))
    first = float(re.search(r"heatmap': ([\d.]+)", stock)[1])
    assert float(re.search(r"heatmap': ([\d.]+)", last)[1]) < first / 100
