import json

import matplotlib.image
import pytest


def log_training(work_dir):
    folder = work_dir / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    records = [dict(loss=9.0 / i, iter=i, step=i, lr=0.1) for i in (1, 2)]
    (folder / 'scalars.json').write_text(
        '\n'.join(map(json.dumps, [*records, dict(mAP=0.3, step=1)])))


def test_plot_training(tmp_path, run_here):
    log_training(tmp_path / 'quickstart')
    out = tmp_path / 'new' / 'curve.png'
    code, printed = run_here('analysis_tools/plot_training.py',
                             tmp_path / 'quickstart', '--out', out)
    assert code == 0, printed.err
    assert printed.out.splitlines() == [str(out)]
    assert matplotlib.image.imread(out).shape[:2] == (600, 1500)


@pytest.mark.parametrize(('args', 'message'), [
    (['nothing', '--out', 'x.png'], 'error: No training log in nothing'),
    (['log', '--out', 'x.jpg'], "--out must end in .png, got 'x.jpg'"),
    (['log', '--out', 'x.png', '--metrics', 'NDS'],
     "error: metrics: ['NDS'] were not logged, only ['mAP', 'step']"),
])
def test_plot_training_errors(tmp_path, monkeypatch, fail, args, message):
    monkeypatch.chdir(tmp_path)
    log_training(tmp_path / 'log')
    assert message in fail('analysis_tools/plot_training.py', *args)
    assert not list(tmp_path.glob('x.*'))
