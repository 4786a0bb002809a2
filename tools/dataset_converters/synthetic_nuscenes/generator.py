"""Write the data set: all of it or nothing."""
import fcntl
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from .config import TRAIN_SCENES, VAL_SCENES, VERSION, GeneratorConfig
from .infos import build_infos
from .road import KERB
from .scenario import REACH
from .scene import Box, Scene, cached_scene
from .tables import build_tables, map_filename

GENERATOR_VERSION = 2  # goes up whenever the bytes change
MANIFEST = 'synthetic_nuscenes.json'
CONTENT = (VERSION, 'samples', 'sweeps', 'maps', 'nuscenes_infos_train.pkl',
           'nuscenes_infos_val.pkl')
MAP_RESOLUTION = 0.1  # metres per pixel, the devkit's default
SWEEPS_PER_JOB = 5


def generate_synthetic_nuscenes(out: str | Path,
                                config: GeneratorConfig,
                                workers: int = 1,
                                force: bool = False) -> bool:
    """Make a synthetic nuScenes ``v1.0-mini`` data set.

    The folder appears only once it is complete, which the manifest
    ``synthetic_nuscenes.json`` marks. Equal configs give equal bytes whatever
    the number of workers. ``force`` replaces an earlier synthetic data set.

    Returns:
        bool: False if ``out`` already held this very data set.

    Raises:
        ValueError: If ``out`` holds anything else.
    """
    out = Path(out).resolve()
    if not _needs_writing(out, config, force):
        return False
    with _staging_folder(out) as staging:
        if not _needs_writing(out, config, force):  # another run was faster
            return False
        root = staging / 'new'
        root.mkdir()
        boxes = _scan_all(root, config, workers)
        _write_tables(root, boxes, config)
        _dump_json(root / MANIFEST,
                   dict(_arguments(config), size=_size(root)))
        if out.exists():
            os.replace(out, staging / 'old')
        os.replace(root, out)
    return True


# -- the target folder ------------------------------------------------------
def _arguments(config: GeneratorConfig) -> dict[str, Any]:
    arguments = dict(generator_version=GENERATOR_VERSION, **asdict(config))
    return arguments | dict(scenes=list(config.scenes))


def _size(root: Path) -> dict[str, int]:
    """Count the files that this module writes, and their bytes."""
    entries = [root / name for name in CONTENT]
    entries += [path for folder in entries for path in folder.rglob('*')]
    files = [path for path in entries if path.is_file()]
    return dict(files=len(files), bytes=sum(f.stat().st_size for f in files))


def _needs_writing(out: Path, config: GeneratorConfig, force: bool) -> bool:
    """Decide whether to write ``out``; refuse if that would destroy it."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return True
    try:
        found = dict(json.loads((out / MANIFEST).read_text()))
    except (OSError, ValueError):
        raise ValueError(
            f'out={out} exists and is not a data set made by this tool; it '
            'stays untouched. Choose another folder.') from None
    wanted = _arguments(config)
    same = found == dict(wanted, size=_size(out))
    if not same and not force:
        raise ValueError(
            f'out={out} holds another synthetic data set, of the arguments '
            f'{found}, not {wanted}, or files are missing or changed. Choose '
            'another folder, or replace it with --force (force=True).')
    return force


@contextmanager
def _staging_folder(out: Path) -> Iterator[Path]:
    """Make an empty folder beside ``out``, removed at the end."""
    folder = out.with_name(f'.{out.name}.incomplete')
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        # The lock ends with the process, however that ends.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in folder.iterdir():  # by a run that was killed
            shutil.rmtree(left)
        yield folder
        shutil.rmtree(folder)
    except BlockingIOError:
        raise ValueError(
            f'another run is writing to out={out}') from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(handle)


# -- the content ------------------------------------------------------------
def _scan_all(root: Path, config: GeneratorConfig,
              workers: int) -> dict[str, list[list[Box]]]:
    """Write all sweeps; return the boxes of each by the scene's name."""
    for folder in ('samples', 'sweeps'):
        (root / folder / 'LIDAR_TOP').mkdir(parents=True)
    count = len(config.sweep_offsets_us)
    jobs = [(name, range(count)[start:start + SWEEPS_PER_JOB])
            for name in config.scenes
            for start in range(0, count, SWEEPS_PER_JOB)]
    boxes: dict[str, list[list[Box]]] = {name: [] for name in config.scenes}
    write = partial(_write_sweeps, config, root)
    with tqdm(total=count * len(boxes), desc='Scanning', unit='sweep') as bar:
        for (name, _), part in zip(jobs, _map(write, jobs, workers)):
            boxes[name] += part
            bar.update(len(part))
    return boxes


def _write_sweeps(config: GeneratorConfig, root: Path,
                  job: tuple[str, range]) -> list[list[Box]]:
    name, indices = job
    scene = cached_scene(name, config)
    return [scene.write_sweep(i, root) for i in indices]


def _map(function: Callable[[Any], Any], jobs: list[Any],
         workers: int) -> Iterator[Any]:
    if workers == 1:
        yield from map(function, jobs)
        return
    # A fork would copy the threads' locks of Embree without the threads.
    with ProcessPoolExecutor(
            workers, multiprocessing.get_context('spawn'),
            _follow_parent) as pool:
        yield from pool.map(function, jobs)


def _follow_parent() -> None:
    """Let a worker end with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_tables(root: Path, boxes: dict[str, list[list[Box]]],
                  config: GeneratorConfig) -> None:
    for folder in (VERSION, 'maps'):
        (root / folder).mkdir()
    scenes = [cached_scene(name, config) for name in config.scenes]
    for scene in scenes:
        _draw_map(scene, root / map_filename(scene.name))
    for name, rows in build_tables(scenes, boxes, config).items():
        _dump_json(root / VERSION / f'{name}.json', rows)
    for split, names in (('train', TRAIN_SCENES), ('val', VAL_SCENES)):
        infos = build_infos([scene for scene in scenes if scene.name in names],
                            boxes)
        with open(root / f'nuscenes_infos_{split}.pkl', 'wb') as file:
            pickle.dump(infos, file, protocol=4)


def _draw_map(scene: Scene, path: Path) -> None:
    """Draw the road as a mask; the devkit has the largest y in row 0."""
    s = np.linspace(-REACH, scene.scenario.ego[-1] + REACH, 200)
    left, right = (np.stack(scene.road.to_global(s, edge)[:2], 1)
                   for edge in (KERB, -KERB))
    outline = np.concatenate([left, right[::-1]]) / MAP_RESOLUTION
    width, height = np.ceil(outline.max(0) + 30 / MAP_RESOLUTION).astype(int)
    image = Image.new('L', (int(width), int(height)))
    corners = [(x, height - y) for x, y in outline]
    ImageDraw.Draw(image).polygon(corners, fill=255)
    image.save(path)


def _dump_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=0, separators=(',', ': ')))
