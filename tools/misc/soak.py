"""Train and evaluate for hours over good and damaged data, and watch it.

One training process reads a synthetic data set of which some scans are
truncated, empty, missing or full of NaN, and evaluates after each epoch. Its
memory, open files and processes are recorded from outside, and at the end it
is ended by SIGTERM. The verdict is in WORK_DIR/soak.json, the curves are in
soak.csv and soak.png beside it; the exit code is 1 if anything grew, was NaN
or stayed behind.
"""
import argparse
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from tqdm import tqdm

from sigplug.engine.machine import describe_machine, list_versions
from sigplug.visualization import read_training_log, save_png
from sigplug.visualization.figure import new_figure, style_axes

TOOLS = Path(__file__).resolve().parent.parent
CONFIG = TOOLS.parent / (
    'configs/centerpoint/'
    'centerpoint_pillar04_second_secfpn_gem_1xb4-onecycle-8e_nus-mini-3d.py')
# Workers that live for one epoch, so that one that is leaked would be seen.
SOAK_CONFIG = """
_base_ = [{config!r}]
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
for pipeline in (train_pipeline, test_pipeline):
    pipeline[0].update(on_bad='skip', max_bad=0.5)
train_cfg = dict(max_epochs=1000000, val_interval=1)
param_scheduler = []
train_dataloader = dict(
    batch_size=2, persistent_workers=False,
    dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=2, persistent_workers=False,
    dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
default_hooks = dict(logger=dict(interval=1))
log_processor = dict(window_size=1)
"""
DAMAGES = ('truncated', 'empty', 'missing', 'nan')
# Of the time, after which caches and allocators have settled.
WARM_UP = 0.25
# What may be lost in the noise: of the memory, over the watched time.
MOST_GROWTH = 0.03
STOP_WITHIN = 60.0


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        '--seconds', type=float, default=3600, help='how long to train')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/soak'),
        help='folder of the data and the results')
    parser.add_argument(
        '--config', type=Path, default=CONFIG, help='config to train')
    parser.add_argument(
        '--damaged', type=float, default=0.1, metavar='SHARE',
        help='share of the scans that are damaged')
    parser.add_argument(
        '--samples-per-scene', type=int, default=4, metavar='N',
        help='key frames in each of the ten scenes')
    parser.add_argument(
        '--interval', type=float, default=5.0, metavar='SECONDS',
        help='time between two looks at the processes')
    parser.add_argument('--seed', type=int, default=0, help='random seed')
    args = parser.parse_args()
    if not args.config.is_file():
        parser.error(f'--config: {args.config} does not exist')
    if args.seconds <= 0 or args.interval <= 0:
        parser.error('--seconds and --interval must be above 0, but are '
                     f'{args.seconds} and {args.interval}')
    if not 0 <= args.damaged < 1:
        parser.error(f'--damaged must be in [0, 1), but is {args.damaged}')
    if (args.work_dir / 'run').exists():
        parser.error(f'--work-dir: {args.work_dir} holds an earlier run; '
                     'remove it or name another folder')
    return args


def damage_scans(data: Path, share: float, seed: int) -> dict[str, str]:
    """Damage some of the scans of the key frames.

    Returns:
        dict[str, str]: What was done, by the name of the file.
    """
    rng = np.random.default_rng(seed)
    scans = sorted((data / 'samples' / 'LIDAR_TOP').iterdir())
    chosen = rng.permutation(len(scans))[:round(share * len(scans))]
    damaged = {}
    for number, index in enumerate(sorted(chosen)):
        scan, kind = scans[index], DAMAGES[number % len(DAMAGES)]
        content = scan.read_bytes()
        if kind == 'truncated':
            # Not a whole number of points, as after a broken transfer.
            scan.write_bytes(content[:len(content) // 2 + 3])
        elif kind == 'empty':
            scan.write_bytes(b'')
        elif kind == 'missing':
            scan.unlink()
        else:
            points = np.frombuffer(content, np.float32).copy()
            points[:] = np.nan
            scan.write_bytes(points.tobytes())
        damaged[scan.name] = kind
    return damaged


def look(pid: int) -> dict[str, float] | None:
    """What a process takes with its workers, or None if it has ended."""
    try:
        process = psutil.Process(pid)
        record = dict(
            memory=own_memory(process),
            files=process.num_fds(),
            threads=process.num_threads(),
            workers=0)
        workers = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return None
    for worker in workers:
        try:
            record['memory'] += own_memory(worker)
            record['workers'] += 1
        except psutil.NoSuchProcess:
            pass
    return record


def own_memory(process: psutil.Process) -> float:
    """MiB; what forked processes share is divided among them."""
    memory = process.memory_full_info()
    return getattr(memory, 'pss', memory.uss) / 2**20


def watch(process: subprocess.Popen, seconds: float,
          interval: float) -> list[dict[str, float]]:
    """Look at a process until the time is over or it ends."""
    records, start = [], time.monotonic()
    with tqdm(total=round(seconds), unit='s') as progress:
        while (now := time.monotonic() - start) < seconds:
            record = look(process.pid) if process.poll() is None else None
            if record is None:
                break
            records.append(dict(time=now, **record))
            progress.update(int(now) - progress.n)
            time.sleep(interval)
    return records


def stop(process: subprocess.Popen) -> tuple[float, list[int]]:
    """End a process that leads a session of its own.

    Returns:
        tuple: Seconds until it had ended, and the processes of the session
        that were still there.
    """
    start = time.monotonic()
    process.terminate()
    while process.poll() is None or session_of(process.pid):
        if time.monotonic() - start > STOP_WITHIN:
            break
        time.sleep(0.1)
    seconds = time.monotonic() - start
    left = session_of(process.pid)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    return seconds, left


def session_of(leader: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for other in psutil.process_iter():
        try:
            if os.getsid(other.pid) == leader and (
                    other.status() != psutil.STATUS_ZOMBIE):
                found.append(other.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass
    return found


def slope(times: list[float], values: list[float]) -> float:
    """The median of the slopes between all pairs (Theil and Sen)."""
    times, values = np.asarray(times), np.asarray(values)
    first, second = np.triu_indices(len(times), k=1)
    return float(np.median(
        (values[second] - values[first]) / (times[second] - times[first])))


def judge(records: list[dict], losses: list[float]) -> dict:
    """The figures, and in ``faults`` what is wrong with them."""
    start = WARM_UP * records[-1]['time']
    settled = [r for r in records if r['time'] >= start]
    # Slopes of a few hundred points say as much as those of all.
    settled = settled[::max(1, len(settled) // 500)]
    times = [r['time'] for r in settled]
    figures, faults = {}, []
    for name in ('memory', 'files', 'threads'):
        values = [r[name] for r in settled]
        middle = float(np.median(values))
        growth = slope(times, values)
        figures[name] = dict(
            median=round(middle, 1), highest=round(max(values), 1),
            per_hour=round(growth * 3600, 2))
        if growth * (times[-1] - times[0]) > MOST_GROWTH * middle:
            faults.append(f'{name} grows: {figures[name]}')
    # Workers may overlap for a moment when an epoch ends.
    figures['most_workers'] = max(r['workers'] for r in settled)
    thirds = np.array_split([r['workers'] for r in settled], 3)
    if np.median(thirds[2]) > np.median(thirds[0]):
        faults.append('there are more and more workers')
    odd = sum(not math.isfinite(loss) for loss in losses)
    figures['iterations'] = len(losses)
    if odd or not losses:
        faults.append(f'{odd} of {len(losses)} losses are not finite'
                      if losses else 'no loss was logged')
    return dict(figures, faults=faults)


def draw(records: list[dict], steps: list[int], losses: list[float],
         path: Path) -> None:
    """Memory, open files with processes, and loss."""
    figure = new_figure((1500, 1200))
    memory, numbers, loss = figure.subplots(3, 1)
    hours = [r['time'] / 3600 for r in records]
    memory.plot(hours, [r['memory'] for r in records], linewidth=0.8,
                label='all processes')
    style_axes(memory, 'Memory', 'hours', 'MiB')
    for name in ('files', 'threads', 'workers'):
        numbers.plot(hours, [r[name] for r in records], label=name,
                     linewidth=0.8)
    style_axes(numbers, 'Open files, threads and workers', 'hours', 'number')
    loss.plot(steps, losses, linewidth=0.8, label='each iteration')
    loss.set_yscale('log')
    style_axes(loss, 'Loss', 'iteration')
    for ax in (memory, numbers, loss):
        ax.set_ylim(bottom=0 if ax is not loss else None)
        ax.legend(fontsize=8)
    save_png(figure, path)


def main() -> None:
    """Soak."""
    args = parse_args()
    data, run = args.work_dir / 'data', args.work_dir / 'run'
    args.work_dir.mkdir(parents=True, exist_ok=True)
    code = subprocess.call(
        [sys.executable,
         TOOLS / 'dataset_converters' / 'create_synthetic_nuscenes.py',
         '--out', data, '--seed', str(args.seed), '--force',
         '--samples-per-scene', str(args.samples_per_scene)])
    if code:
        # The generator has said why.
        sys.exit(code)
    damaged = damage_scans(data, args.damaged, args.seed)
    print(f'{len(damaged)} scans are damaged')
    config = args.work_dir / 'soak_config.py'
    config.write_text(SOAK_CONFIG.format(config=str(args.config.resolve())))

    log = args.work_dir / 'train.log'
    with open(log, 'w') as output:
        process = subprocess.Popen(
            [sys.executable, TOOLS / 'train.py', config, '--work-dir', run],
            env=dict(os.environ, SIGPLUG_DATA_ROOT=f'{data.resolve()}/',
                     SIGPLUG_DATA_VERSION='v1.0-mini'),
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            records = watch(process, args.seconds, args.interval)
            code = process.poll()
        finally:
            seconds, left = stop(process)

    training = read_training_log(run)
    losses = [r['loss'] for r in training.train]
    result = judge(records, losses)
    if code is not None:
        result['faults'].append(f'the training ended by itself, with exit '
                                f'code {code}: see {log}')
    if left:
        result['faults'].append(
            f'{len(left)} processes were left after SIGTERM, at most '
            f'{STOP_WITHIN:.0f} s later')
    result = dict(
        machine=describe_machine(), versions=list_versions(),
        seconds=round(records[-1]['time']), epochs=len(training.val),
        damaged=damaged, stopped_within=round(seconds, 1), **result)
    (args.work_dir / 'soak.json').write_text(
        json.dumps(result, indent=2) + '\n')
    with open(args.work_dir / 'soak.csv', 'w', newline='') as file:
        table = csv.DictWriter(file, records[0])
        table.writeheader()
        table.writerows(records)
    draw(records, [r['step'] for r in training.train], losses,
         args.work_dir / 'soak.png')
    print(json.dumps({k: v for k, v in result.items()
                      if k not in ('versions', 'damaged')}, indent=2))
    if result['faults']:
        sys.exit(1)


if __name__ == '__main__':
    main()
