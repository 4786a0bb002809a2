"""Checkpoints that survive a kill and a full disk."""
import os
import os.path as osp
from glob import escape, glob
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as BaseCheckpointHook
from mmengine.runner import Runner

from sigplug.errors import UserError
from sigplug.files import PARTIAL, lock, replacing
from sigplug.registry import HOOKS

BACKEND = 'sigplug.AtomicLocalBackend'


class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files, with two differences.

    A file has its old content until the new one is on the disk, and files are
    removed by :meth:`remove_outdated`, as mmengine removes the old checkpoint
    before it writes the new one.
    """

    def __init__(self) -> None:
        self._outdated: list[str] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file, whole or not at all; its folder is created."""
        os.makedirs(osp.dirname(filepath) or '.', exist_ok=True)
        try:
            with replacing(filepath) as partial, open(partial, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # The error of a failed write does not name the file.
            error.filename = str(filepath)
            raise

    def remove(self, filepath: str | Path) -> None:
        """Remember a file for :meth:`remove_outdated`."""
        self._outdated.append(str(filepath))

    def remove_outdated(self, kept: set[str | None]) -> None:
        """Remove what :meth:`remove` was called for and is not kept."""
        for path in self._outdated:
            if path not in kept:
                Path(path).unlink(missing_ok=True)
        self._outdated.clear()


register_backend(BACKEND, AtomicLocalBackend)


@HOOKS.register_module()
class CheckpointHook(BaseCheckpointHook):
    """mmengine's hook, with a good checkpoint on the disk at every moment.

    It takes the arguments of ``mmengine.hooks.CheckpointHook``, and in an
    undisturbed training leaves the same files. It differs in three points:

    - A checkpoint is first written whole beside the old one and then takes
      its place.
    - ``max_keep_ckpts`` and ``save_best`` remove the old checkpoint after the
      new one is on the disk, which for that moment needs room for one more.
      (mmengine removes it before, so that a kill or a full disk may leave
      none.) A kill in between leaves one more than asked for.
    - One training at a time writes to a work dir. The lock, a file ``.lock``,
      ends with the process, however that ends.

    Checkpoints that go elsewhere than to a local folder (``backend_args``, or
    an ``out_dir`` with a prefix) are written as by mmengine.
    """

    backend_args: dict[str, Any] | None

    def before_train(self, runner: Runner) -> None:
        """Lock the work dir, and clear away what a killed training left.

        Raises:
            UserError: Another training writes there.
        """
        if is_main_process():
            # The others end with it.
            try:
                self._lock = lock(osp.join(runner.work_dir, '.lock'))
            except BlockingIOError as error:
                raise UserError(
                    f'Another process is writing to {runner.work_dir!r}. Wait '
                    'for its end, or give this one a folder of its own with '
                    '--work-dir.') from error
        local = '://' not in (self.out_dir or '') and (
            self.file_client_args is None and self.backend_args is None)
        if local:
            self.backend_args = dict(backend=BACKEND)
        super().before_train(runner)
        if local and is_main_process():
            for path in glob(osp.join(escape(self.out_dir), f'*{PARTIAL}')):
                os.remove(path)

    def after_train(self, runner: Runner) -> None:
        """Publish as mmengine does, and unlock the work dir."""
        super().after_train(runner)
        if is_main_process():
            self._lock.close()

    def _save_checkpoint_with_step(self, runner: Runner, step: int,
                                   meta: dict[str, Any]) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_outdated()

    def _save_best_checkpoint(self, runner: Runner,
                              metrics: dict[str, Any]) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self._remove_outdated()

    def _remove_outdated(self) -> None:
        if isinstance(self.file_backend, AtomicLocalBackend):
            self.file_backend.remove_outdated({
                self.last_ckpt, getattr(self, 'best_ckpt_path', None),
                *getattr(self, 'best_ckpt_path_dict', {}).values()})
