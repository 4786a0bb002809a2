"""One job at a time in a folder."""
import os
import os.path as osp
from typing import IO

from mmengine.logging import print_log

from sigplug.errors import UserError

LOCK = '.lock'


def lock_folder(folder: str) -> IO[str]:
    """Lock a folder, made if missing, until this process ends.

    Args:
        folder (str): The folder.

    Returns:
        IO[str]: The lock; closing it unlocks the folder.

    Raises:
        UserError: Another process has the lock.
    """
    os.makedirs(folder, exist_ok=True)
    file = open(osp.join(folder, LOCK), 'a')
    try:
        # Not on Windows.
        import fcntl

        # Unlike that of flock, this lock is not inherited by the workers of
        # a data loader, who outlive a killed training by some seconds.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise UserError(
            f'Another process is writing to {folder!r}. Wait for its end, or '
            'give this one a folder of its own with --work-dir.') from error
    except (ImportError, OSError) as error:
        print_log(f'{folder} cannot be locked ({error}).', logger='current')
    return file
