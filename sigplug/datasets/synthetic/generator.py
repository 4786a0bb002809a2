"""Writes the data set: all of it or nothing."""
import fcntl
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from .config import (
    TRAIN_SCENES,
    VAL_SCENES,
    VERSION,
    GeneratorConfig,
    require_integer,
)
from .infos import build_infos
from .simulate import Frame, SceneRecord, cached_simulator, write_sweeps
from .tables import build_tables, map_filename

GENERATOR_VERSION = 1  # goes up whenever the bytes change
MANIFEST = 'synthetic_nuscenes.json'
CONTENT = (VERSION, 'samples', 'sweeps', 'maps', 'nuscenes_infos_train.pkl',
           'nuscenes_infos_val.pkl')
MAP_RESOLUTION = 0.1  # metres per pixel, the devkit's default
SWEEPS_PER_JOB = 10


class TargetFolderError(RuntimeError):
    """The folder to write to holds something that must not be replaced."""


def generate_synthetic_nuscenes(out: str | Path,
                                config: GeneratorConfig | None = None,
                                workers: int = 1,
                                force: bool = False) -> bool:
    """Make a synthetic nuScenes ``v1.0-mini`` data set.

    The folder appears only once it is complete, with the manifest
    ``synthetic_nuscenes.json`` as the mark of it. Equal configs give equal
    bytes whatever the number of workers.

    Args:
        out (str or Path): Data root to create.
        config (GeneratorConfig, optional): What to make.
        workers (int): Processes to use, at least 1.
        force (bool): Replace an earlier synthetic data set.

    Returns:
        bool: False if ``out`` already held this very data set.

    Raises:
        TargetFolderError: If ``out`` holds anything else.
        TypeError: If an argument is of another type.
        ValueError: If ``workers`` is less than 1.
    """
    if not isinstance(out, (str, os.PathLike)):
        raise TypeError(f'out must be a path, got {out!r}')
    if not isinstance(config, (GeneratorConfig, type(None))):
        raise TypeError(f'config must be a GeneratorConfig, got {config!r}')
    config = config or GeneratorConfig()
    require_integer('workers', workers)
    if workers < 1:
        raise ValueError(f'workers must be at least 1, got {workers}')
    out = Path(out).resolve()
    if not _needs_writing(out, config, force):
        return False
    with _staging_folder(out) as staging:
        records = _scan_all(staging, config, workers)
        counts = _write_tables(staging, records, config)
        manifest = dict(_arguments(config), counts=counts,
                        size=_size(staging))
        _dump_json(staging / MANIFEST, manifest)
        if _needs_writing(out, config, force):  # another run may be faster
            _publish(staging, out)
    return True


# -- the target folder ------------------------------------------------------
def _arguments(config: GeneratorConfig) -> dict[str, Any]:
    return dict(
        generator_version=GENERATOR_VERSION,
        seed=config.seed,
        samples_per_scene=config.samples_per_scene,
        intermediate_sweeps=config.intermediate_sweeps,
        scenes=list(config.scenes),
        difficulty=config.difficulty)


def _read_manifest(root: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((root / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    # Early manifests do not name it.
    return dict(difficulty='standard') | found


def _size(root: Path) -> dict[str, int]:
    """Number and total size of the files that this module writes."""
    entries = [root / name for name in CONTENT]
    entries += [path for folder in entries for path in folder.rglob('*')]
    files = [path for path in entries if path.is_file()]
    return dict(files=len(files), bytes=sum(f.stat().st_size for f in files))


def _needs_writing(out: Path, config: GeneratorConfig, force: bool) -> bool:
    """Whether to write ``out``; an error if that would destroy something."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return True
    found = _read_manifest(out)
    if found is None:
        raise TargetFolderError(
            f'out={out} exists and is not a data set made by this tool; it '
            'stays untouched. Choose another folder.')
    if force:
        foreign = sorted({path.name
                          for path in out.iterdir()} - {MANIFEST, *CONTENT})
        if foreign:
            raise TargetFolderError(
                f'out={out} also holds {", ".join(foreign)}, which this tool '
                'did not make and would lose; move it away first.')
        return True
    differing = [
        f'{name} is {found.get(name)}, not {value}'
        for name, value in _arguments(config).items()
        if found.get(name) != value
    ]
    if not differing and found.get('size') != _size(out):
        differing = ['files are missing or changed']
    if differing:
        raise TargetFolderError(
            f'out={out} holds another synthetic data set '
            f'({"; ".join(differing)}). Choose another folder, or replace it '
            'with --force (force=True).')
    return False


@contextmanager
def _staging_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out``, locked while in use and removed at the end."""
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f'.{out.name}.incomplete-'
    with ExitStack() as stack:
        # A folder that is just made, and not locked yet, must not pass for
        # one that was left.
        with _locked(out.parent, wait=True):
            for stale in out.parent.glob(f'{prefix}*'):
                # Another run may just publish it.
                with suppress(FileNotFoundError), _locked(stale) as free:
                    if free:  # the process that made it is gone
                        shutil.rmtree(stale)
            staging = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            stack.enter_context(_locked(staging))
        staging.chmod(0o755)
        yield staging


@contextmanager
def _locked(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock that dies with the process; False if another holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            free = True
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(handle)


def _publish(staging: Path, out: Path) -> None:
    """Put the finished folder in place of ``out``."""
    if _read_manifest(out) is None:  # absent or empty
        os.replace(staging, out)
        return
    old = tempfile.mkdtemp(prefix=f'.{out.name}.incomplete-', dir=out.parent)
    os.replace(out, old)
    os.replace(staging, out)
    shutil.rmtree(old, ignore_errors=True)


# -- the content ------------------------------------------------------------
def _scan_all(root: Path, config: GeneratorConfig,
              workers: int) -> list[SceneRecord]:
    """Write all sweeps and return what happened in the scenes."""
    for folder in ('samples', 'sweeps'):
        (root / folder / 'LIDAR_TOP').mkdir(parents=True)
    count = len(config.sweep_offsets_us)
    jobs = [(name, config, root,
             range(start, min(start + SWEEPS_PER_JOB, count)))
            for name in config.scenes
            for start in range(0, count, SWEEPS_PER_JOB)]
    frames: dict[str, list[Frame]] = {name: [] for name in config.scenes}
    with _results(jobs, workers) as results, tqdm(
            total=count * len(config.scenes), desc='Scanning',
            unit='sweep') as bar:
        for (name, *_), part in zip(jobs, results):
            frames[name] += part
            bar.update(len(part))
    return [
        cached_simulator(name, config).record(frames[name])
        for name in config.scenes
    ]


@contextmanager
def _results(jobs: list[tuple], workers: int) -> Iterator[Iterator[list]]:
    """Results of ``write_sweeps`` for all jobs, in their order."""
    if workers == 1:
        yield (write_sweeps(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, initializer=_follow_parent) as pool:
        futures: list[Future] = [
            pool.submit(write_sweeps, *job) for job in jobs
        ]
        try:
            yield (future.result() for future in futures)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _follow_parent() -> None:
    """Let a worker end with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None, 'is called in a worker'
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_tables(root: Path, records: list[SceneRecord],
                  config: GeneratorConfig) -> dict[str, int]:
    """Write everything but the sweeps; return the rows of each table."""
    for folder in (VERSION, 'maps'):
        (root / folder).mkdir()
    for record in records:
        _draw_map(record, root / map_filename(record.name))
    tables = build_tables(records, config)
    for name, rows in tables.items():
        _dump_json(root / VERSION / f'{name}.json', rows)
    # The sweeps since the last key frame and that key frame itself: half a
    # second, as much as ten sweeps of the real data set.
    max_sweeps = config.intermediate_sweeps + 1
    for split, scenes in (('train', TRAIN_SCENES), ('val', VAL_SCENES)):
        _dump_pickle(root / f'nuscenes_infos_{split}.pkl',
                     build_infos(tables, scenes, max_sweeps))
    return {name: len(rows) for name, rows in tables.items()}


def _draw_map(record: SceneRecord, path: Path) -> None:
    """Road surface as a mask; the devkit puts row 0 at the largest y."""
    outline = np.array(record.outline) / MAP_RESOLUTION
    width, height = np.ceil(outline.max(0) + 30 / MAP_RESOLUTION).astype(int)
    image = Image.new('L', (int(width), int(height)))
    corners = [(x, height - y) for x, y in outline]
    ImageDraw.Draw(image).polygon(corners, fill=255)
    image.save(path)


def _dump_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=0, separators=(',', ': ')))


def _dump_pickle(path: Path, content: Any) -> None:
    """Pickle so that equal values give equal bytes.

    A pickle also records which strings are one object, and that depends on
    where they were made; a trip through JSON makes them all anew.
    """
    content = json.loads(json.dumps(content))
    path.write_bytes(pickle.dumps(content, protocol=4))
