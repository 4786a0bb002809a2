"""Checkpoints that survive a kill and a full disk."""
import errno
import os
import os.path as osp
from contextlib import ExitStack
from glob import escape, glob
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as BaseCheckpointHook
from mmengine.runner import Runner

from sigplug.engine.lock import lock_folder
from sigplug.errors import UserError
from sigplug.registry import HOOKS

BACKEND = 'sigplug.AtomicLocalBackend'
PARTIAL = '.partial'
# What file systems of networks and of user space say.
CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files, whose writes are all or nothing."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file, which has its old content until the new is on disk.

        Args:
            obj (bytes): The content.
            filepath (str or Path): The file. Its folder is created.

        Raises:
            OSError: The file cannot be written; it is as it was before.
        """
        folder = osp.dirname(filepath) or '.'
        partial = f'{filepath}{PARTIAL}'
        try:
            os.makedirs(folder, exist_ok=True)
            with open(partial, 'wb') as file:
                file.write(obj)
                file.flush()
                _sync(file.fileno())
            os.replace(partial, filepath)
            _sync_folder(folder)
        except OSError as error:
            _remove(partial)
            # A failed write does not say which file it was about.
            raise OSError(
                error.errno, error.strerror, str(filepath)) from error
        except BaseException:
            _remove(partial)
            raise


register_backend(BACKEND, AtomicLocalBackend)


@HOOKS.register_module()
class CheckpointHook(BaseCheckpointHook):
    """mmengine's hook, with a good checkpoint on the disk at every moment.

    It takes the arguments of ``mmengine.hooks.CheckpointHook``, and in an
    undisturbed training leaves the same files. What it does otherwise:

    - A checkpoint, and the file ``last_checkpoint``, is first written whole
      beside the old one and then takes its place.
    - ``max_keep_ckpts`` and ``save_best`` remove the old checkpoint after the
      new one is on the disk; for that moment there is room needed for one
      more. (mmengine removes it before, so that a kill or a full disk may
      leave none.) A kill right between leaves one more than asked for.
    - One training at a time writes to a work dir, and to a local ``out_dir``.
      The lock, a file ``.lock``, ends with the process, however that ends.

    Checkpoints that go elsewhere than to a local folder (``backend_args``, or
    an ``out_dir`` with a prefix) are written as by mmengine.

    Args:
        *args: See ``mmengine.hooks.CheckpointHook``.
        **kwargs: See ``mmengine.hooks.CheckpointHook``.
    """

    backend_args: dict[str, Any] | None

    def before_train(self, runner: Runner) -> None:
        """Lock the folders, and clear away what a killed training left.

        Args:
            runner (Runner): The runner.

        Raises:
            UserError: Another training writes there; in each process.
        """
        folder = find_checkpoint_dir(self.out_dir, runner.work_dir)
        local = '://' not in folder and (
            self.file_client_args is None and self.backend_args is None)
        # The work dir also has the log, and the file last_checkpoint.
        self._locks = _lock_for_all(
            {runner.work_dir, folder} if local else {runner.work_dir})
        if local:
            self.backend_args = dict(backend=BACKEND)
        super().before_train(runner)
        if local and is_main_process():
            for path in glob(osp.join(escape(self.out_dir), f'*{PARTIAL}')):
                _remove(path)

    def after_train(self, runner: Runner) -> None:
        """Publish as mmengine does, and unlock the folders.

        Args:
            runner (Runner): The runner.
        """
        super().after_train(runner)
        self._locks.close()

    # In the place of mmengine's, which removes before it saves.
    def _save_checkpoint_with_step(self, runner: Runner, step: int,
                                   meta: dict[str, Any]) -> None:
        outdated = None
        if self.max_keep_ckpts > 0 and step not in list(
                self.keep_ckpt_ids)[-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self._path(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            # Goes into the checkpoint, for a training that is resumed.
            runner.message_hub.update_info('keep_ckpt_ids',
                                           list(self.keep_ckpt_ids))
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args)
        if not is_main_process():
            return
        AtomicLocalBackend().put(self.last_ckpt.encode(),
                                 osp.join(runner.work_dir, 'last_checkpoint'))
        # A filename_tmpl without a number gives the new one the same name.
        if outdated in (None, self.last_ckpt):
            return
        if self.file_backend.isfile(outdated):
            self.file_backend.remove(outdated)
        # DeepSpeed's checkpoints are folders.
        elif self.file_backend.isdir(outdated):
            self.file_backend.rmtree(outdated)

    def _save_best_checkpoint(self, runner: Runner,
                              metrics: dict[str, Any]) -> None:
        outdated: list[str] = []
        # mmengine removes the best one of before, and then saves.
        self.file_backend.remove = outdated.append
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            del self.file_backend.remove
        # In one epoch, a later best one has the name of the earlier.
        kept = {self.last_ckpt, getattr(self, 'best_ckpt_path', None),
                *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for path in outdated:
            if path not in kept:
                self.file_backend.remove(path)

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(
            self.out_dir, self.filename_tmpl.format(step))


def find_checkpoint_dir(out_dir: str | None, work_dir: str) -> str:
    """Where mmengine's hook writes: a folder below ``out_dir``, if given.

    Args:
        out_dir (str, optional): The argument of the hook.
        work_dir (str): The work dir.

    Returns:
        str: The folder.
    """
    if out_dir is None or out_dir == osp.abspath(work_dir):
        return work_dir
    return osp.join(out_dir, osp.basename(osp.abspath(work_dir)))


def _lock_for_all(folders: set[str]) -> ExitStack:
    """Lock folders in the first process, and let all know if one is taken."""
    locks = ExitStack()
    refusal: list[str | None] = [None]
    if is_main_process():
        try:
            for folder in sorted(folders):
                locks.enter_context(lock_folder(folder))
        except UserError as error:
            locks.close()
            refusal = [str(error)]
    broadcast_object_list(refusal)
    if refusal[0]:
        raise UserError(refusal[0])
    return locks


def _sync_folder(folder: str) -> None:
    """Make a new name durable, before an old file is removed for it."""
    if os.name != 'posix':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Wait for the disk, as far as the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)
