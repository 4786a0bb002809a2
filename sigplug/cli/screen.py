"""What of a run is shown on the screen; its log file has everything."""
import logging
import re
import warnings

from mmengine.logging import MMLogger

# How messages begin that mmengine and mmdet3d log in each run, some hundreds
# of lines in all (https://github.com/open-mmlab/mmengine/pull/781).
NOISE = re.compile(
    r'\n?-{20,}|Config:\n|Hooks will be executed|Distributed training is not '
    'used|paramwise_options|The length of |The number of instances|Exp name: '
    '|Using env variable|"FileClient" will be|"HardDiskBackend" is|'
    '.* is not a meta file|Traceback |'
    # The nuScenes devkit has just printed the same as a table.
    r'Epoch\((val|test)\) .*NuScenes metric/')


def is_news(record: logging.LogRecord) -> bool:
    """Return whether a message is shown on the screen."""
    return NOISE.match(record.getMessage()) is None


def quieten(logger: logging.Logger) -> None:
    """Keep what is not news from the screen, but not from the log file."""
    for handler in logger.handlers:
        if handler.level > logging.DEBUG and not isinstance(
                handler, logging.FileHandler):
            handler.addFilter(is_news)


def quieten_imports() -> None:
    """Keep from the screen what each import of the stack warns about."""
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated')
    # That of before a run.
    quieten(MMLogger.get_instance('mmengine'))
