"""mmengine's runner with a quiet screen."""
import logging
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner as BaseRunner

from sigplug.files import relative

from .screen import quieten


class Runner(BaseRunner):
    """mmengine's runner, which shows news alone on the screen.

    Stages, iterations, losses, the time that is left and warnings are; the
    config, the environment and the order of the hooks go to the log file. The
    setting ``log_level='DEBUG'`` shows all.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger, and name its file."""
        logger = super().build_logger(*args, **kwargs)
        quieten(logger)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                # That takes some ten seconds.
                logger.info('Model and data are prepared. The whole log is in '
                            f'{relative(handler.baseFilename)}')
        return logger
