"""Train for hours over good and damaged data, and watch the training.

One training reads a synthetic data set of which some scans are truncated,
empty, missing or full of NaN. Its memory, open files and processes are
recorded from outside, and SIGTERM ends it. The result is in
WORK_DIR/soak.json; the exit code is 1 if anything grew, was NaN or was left
behind.
"""
import argparse
import json
import math
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

TOOLS = Path(__file__).resolve().parent.parent
QUICKSTART = TOOLS.parent / (
    'configs/centerpoint/'
    'centerpoint_pillar04_second_secfpn_gem_1xb2-onecycle-5e_nus-mini-3d.py')
# Workers that live for one epoch, so that a leaked one would be seen.
CONFIG = f"""
_base_ = [{str(QUICKSTART)!r}]
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
for pipeline in (train_pipeline, test_pipeline):
    pipeline[0].update(on_bad='skip', max_bad=0.5)
# In the first epochs a model finds no box within the ranges of the classes,
# and the nuScenes devkit does not evaluate nothing.
train_cfg = dict(max_epochs=1000000, val_interval=1, val_begin=8)
model = dict(
    pts_bbox_head=dict(bbox_coder=dict(score_threshold=0.001)),
    test_cfg=dict(pts=dict(score_threshold=0.001)))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
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
# Growth that is taken for noise.
MOST_GROWTH = 0.03
STOP_WITHIN = 60.0
# Of 1000 points; 4003 bytes are no whole number of them.
NAN = np.full(5000, np.nan, np.float32).tobytes()


def damage_scans(data: Path) -> int:
    """Damage a tenth of the scans of the key frames; return how many."""
    chosen = sorted((data / 'samples/LIDAR_TOP').iterdir())[::10]
    for number, scan in enumerate(chosen):
        if number % 4 == 3:
            scan.unlink()
        else:
            scan.write_bytes((NAN, NAN[:4003], b'')[number % 4])
    return len(chosen)


def measure(process: psutil.Process) -> dict[str, float]:
    """Return the resources of a process and its workers."""
    record = dict(files=process.num_fds(), threads=process.num_threads(),
                  workers=0, memory=0.0)
    for member in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            # Memory shared by forked processes is divided among them.
            record['memory'] += member.memory_full_info().pss / 2**20
            record['workers'] += member != process
    return record


def watch(process: psutil.Popen, seconds: float) -> list[dict[str, float]]:
    """Record a process until the time is over or it ends."""
    records, end = [], time.time() + seconds
    while time.time() < end and process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            records.append(measure(process))
        time.sleep(5)
    return records


def stop(process: psutil.Popen) -> bool:
    """End a process by SIGTERM; return whether any of it was left."""
    members = [process, *process.children(recursive=True)]
    process.terminate()
    _, left = psutil.wait_procs(members, STOP_WITHIN)
    for member in left:
        member.kill()
    return bool(left)


def judge(records: list[dict], losses: list[float]) -> dict:
    """Return figures, and under ``faults`` everything that is wrong.

    Caches and allocators settle in the first quarter of the time. The last
    third of the rest is compared with the first one, by the medians.
    """
    first, _, last = np.array_split(records[len(records) // 4:], 3)
    figures, faults = dict(iterations=len(losses)), []
    for name in ('memory', 'files', 'threads', 'workers'):
        before, after = (float(np.median([r[name] for r in part] or [0]))
                         for part in (first, last))
        figures[name] = [before, after]
        if after > (1 + MOST_GROWTH) * before:
            faults.append(f'{name} grew from {before:g} to {after:g}')
    odd = sum(not math.isfinite(loss) for loss in losses)
    if odd or not losses:
        faults.append(f'{odd} of {len(losses)} losses are not finite')
    return dict(figures, faults=faults)


def read_losses(run: Path) -> list[float]:
    lines = [line for path in run.glob('*/vis_data/scalars.json')
             for line in path.read_text().splitlines()]
    return [json.loads(line)['loss'] for line in lines if '"loss"' in line]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        '--seconds', type=float, default=3600, help='how long to train')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/soak'),
        help='folder of the data and the results')
    args = parser.parse_args()
    data, run = args.work_dir / 'data', args.work_dir / 'run'
    if run.exists():
        parser.error(f'--work-dir: {args.work_dir} has an earlier run; remove '
                     'it or name another folder')
    args.work_dir.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, TOOLS / 'dataset_converters' /
         'create_synthetic_nuscenes.py', '--out', data, '--force',
         '--samples-per-scene', '4'], check=True)
    damaged = damage_scans(data)
    config = args.work_dir / 'soak_config.py'
    config.write_text(CONFIG)
    print(f'training until {time.ctime(time.time() + args.seconds)}',
          flush=True)
    with open(args.work_dir / 'train.log', 'w') as output:
        process = psutil.Popen(
            [sys.executable, TOOLS / 'train.py', config, '--work-dir', run],
            env=dict(os.environ, SIGPLUG_DATA_ROOT=f'{data.resolve()}/',
                     SIGPLUG_DATA_VERSION='v1.0-mini'),
            stdout=output, stderr=output)
        records = watch(process, args.seconds)
        code = process.poll()
        left = code is None and stop(process)
    result = dict(damaged=damaged, **judge(records, read_losses(run)))
    if code is not None:
        result['faults'].append(f'the training ended by itself, with exit '
                                f'code {code}: see {output.name}')
    if left:
        result['faults'].append('processes were left after SIGTERM')
    text = json.dumps(result, indent=2)
    (args.work_dir / 'soak.json').write_text(text + '\n')
    print(text)
    sys.exit(bool(result['faults']))


if __name__ == '__main__':
    main()
