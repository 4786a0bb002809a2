"""What a run prints, and what only its log file has."""
import logging

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from toy_training import ToyModel

from sigplug.cli import screen
from sigplug.cli.build import Runner

NOISE = [
    'Config:\na = 1\n', '\n' + '-' * 60 + '\nSystem environment:\n',
    'paramwise_options -- p:lr=1', 'v1.0-mini is not a meta file, simply parse'
    'd as meta information', 'Epoch(val) [4][20/20]  NuScenes metric/mAP: 0.5']
NEWS = ['Epoch(train) [1][1/4]  loss: 1.0', 'Epoch(val) [1][1/2]  eta: 0',
        'Saving checkpoint at 1 epochs',
        'The learning rate is 1']


@pytest.mark.parametrize('level', ['INFO', 'DEBUG'])
def test_runner_shows_news_alone(tmp_path, capfd, monkeypatch, level):
    # mmengine's log handlers hold the streams of the tests before.
    monkeypatch.setattr('logging.raiseExceptions', False)
    runner = Runner(
        model=ToyModel(), work_dir=str(tmp_path), log_level=level,
        experiment_name=f'screen_{level}', cfg=Config(dict(a=1)))
    for text in NOISE:
        runner.logger.warning(text)
    for text in NEWS:
        runner.logger.info(text)
    log, = tmp_path.glob('*/*.log')
    shown, written = capfd.readouterr().out, log.read_text()
    assert all(text in written for text in NOISE + NEWS)
    assert all(text in shown for text in NEWS)
    assert all((text in shown) == (level == 'DEBUG') for text in NOISE)
    assert f'The whole log is in {log}\n' in shown
    if level == 'INFO':
        # The file has what mmengine logs at the start, too.
        assert shown.count('\n') <= 5 < written.count('\n') / 10


def test_imports(recwarn):
    screen.quieten_imports()
    import warnings
    warnings.warn('pkg_resources is deprecated as an API. See', stacklevel=1)
    warnings.warn('something else', stacklevel=1)
    assert [str(warning.message) for warning in recwarn] == ['something else']
    record = logging.makeLogRecord(dict(msg='Using env variable `X` with'))
    for handler in MMLogger.get_instance('mmengine').handlers:
        assert not handler.filter(record)
