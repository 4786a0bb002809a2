"""Run the main job: data, training, evaluation and pictures.

Every stage is a tool of its own, started as a user would start it. The
results are gathered in WORK_DIR/summary.json.
"""
import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from sigplug.engine.machine import describe_machine, list_versions

TOOLS = Path(__file__).resolve().parent
CONFIG = TOOLS.parent / (
    'configs/centerpoint/'
    'centerpoint_pillar04_second_secfpn_gem_1xb4-onecycle-8e_nus-mini-3d.py')
DATA_SEED = 0
# What a stage needs in its environment.
SETTINGS = ('SIGPLUG_DATA_ROOT', 'CUDA_VISIBLE_DEVICES')
GPU_PROBE = """
from mmcv.ops import get_compiling_cuda_version
import torch
if get_compiling_cuda_version() == 'not available':
    print('unusable' if torch.cuda.is_available() else 'none')
"""
TP_ERRORS = ('mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE')


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--config', type=Path, default=CONFIG,
        help=f'config to train (default: {CONFIG.name})')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/quickstart'),
        help='folder of the results (default: %(default)s)')
    parser.add_argument(
        '--data-root', type=Path, default=Path('data/synthetic_nuscenes'),
        help='folder of the data set, generated if it is not there (default: '
        '%(default)s)')
    parser.add_argument(
        '--samples-per-scene', type=int, metavar='N',
        help='key frames in each scene of the data set (default: that of the '
        'generator)')
    parser.add_argument(
        '--seed', type=int, default=0,
        help='seed of the training (default: 0)')
    parser.add_argument(
        '--amp', action='store_true',
        help='train in mixed precision, see tools/train.py')
    parser.add_argument(
        '--resume', action='store_true',
        help='continue an interrupted training')
    args = parser.parse_args()
    if not args.config.is_file():
        parser.error(f'--config: {args.config} does not exist')
    if args.work_dir.exists() and not args.work_dir.is_dir():
        parser.error(f'--work-dir {args.work_dir} must be a folder, but is a '
                     'file')
    # numpy takes no other.
    if not 0 <= args.seed < 2**32:
        parser.error(f'--seed must lie in [0, 2**32), got {args.seed}')
    return args


def relative(path: Path | str) -> str:
    """A path as it is typed: relative, where it is below the working dir."""
    path = os.path.relpath(path)
    return os.path.abspath(path) if path.startswith('..') else path


def run_stage(name: str, tool: str, *args: Any) -> dict[str, float]:
    """Run one tool in a process of its own.

    Returns:
        dict[str, float]: Its ``seconds`` and its ``peak_memory_mib``: the
        largest resident set among the tool's process and its workers.
    """
    command = [
        relative(sys.executable), relative(TOOLS / tool), *map(str, args)
    ]
    line = shlex.join(command)
    print(f'\n=== {name}: {line}', flush=True)
    start = perf_counter()
    process = subprocess.Popen(command)

    def stop(*_):
        # The stage would go on alone.
        process.terminate()
        process.wait()
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = code = os.waitstatus_to_exitcode(status)
    if code != 0:
        setting = ' '.join(
            f'{name}={shlex.quote(os.environ[name])}'
            for name in SETTINGS if name in os.environ)
        print(
            f'\nerror: the stage {name!r} failed with exit code {code}. Run '
            f'it alone with\n    {setting} {line}',
            file=sys.stderr)
        # A negative code is a signal.
        sys.exit(code if code > 0 else 1)
    # Linux counts KiB, macOS bytes.
    unit = 2**20 if sys.platform == 'darwin' else 2**10
    return dict(
        seconds=round(perf_counter() - start, 1),
        peak_memory_mib=round(usage.ru_maxrss / unit))


def hide_unusable_gpus() -> None:
    """Keep the stages on the CPU if mmcv's operators cannot use the GPU.

    mmengine would choose the GPU, and the training fail in voxelisation.
    """
    # In a process of its own: the memory of this one counts as that of each
    # stage. Where mmcv is missing, the training will say so.
    probe = subprocess.run([sys.executable, '-c', GPU_PROBE],
                           capture_output=True,
                           text=True)
    if probe.stdout.strip() == 'unusable':
        print("The GPU is not used: mmcv's operators were compiled without "
              'CUDA (make env FORCE_CUDA=1 compiles them for it).',
              flush=True)
        os.environ['CUDA_VISIBLE_DEVICES'] = ''


def read_metrics(work_dir: Path) -> dict[str, Any]:
    """Read what NuScenesMetric reported in the last test of a work dir."""
    newest = max(
        work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    values = {
        key.rpartition('/')[2]: value
        for key, value in json.loads(newest.read_text()).items()
    }
    class_ap = {}
    for key, value in values.items():
        if match := re.fullmatch(r'(\w+)_AP_dist_[\d.]+', key):
            class_ap.setdefault(match[1], []).append(value)
    return dict(
        mAP=values['mAP'],
        NDS=values['NDS'],
        class_AP={
            name: round(sum(aps) / len(aps), 4)
            for name, aps in class_ap.items()
        },
        TP_errors={name: values[name] for name in TP_ERRORS})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, never a part of one."""
    partial = path.with_name(path.name + '.partial')
    partial.write_text(json.dumps(content, indent=2) + '\n')
    os.replace(partial, path)


def report(summary: dict[str, Any]) -> None:
    """Print the results and where they lie."""
    metrics = summary['metrics']
    print('\nnuScenes evaluation')
    for name, ap in metrics['class_AP'].items():
        print(f'  {name:22s}AP {ap:.3f}')
    print(f'  {"mean":22s}AP {metrics["mAP"]:.3f}')
    errors = '  '.join(
        f'{name} {value:.3f}' for name, value in metrics['TP_errors'].items())
    print(f'  NDS {metrics["NDS"]:.3f}  {errors}')
    print('\nStages')
    for name, stage in summary['stages'].items():
        print(f'  {name:10s}{stage["seconds"]:8.1f} s'
              f'{stage["peak_memory_mib"]:8d} MiB')
    print(f'  {"total":10s}{summary["seconds"]:8.1f} s'
          f'{summary["peak_memory_mib"]:8d} MiB')
    print('\nFiles')
    for name, files in summary['files'].items():
        for path in [files] if isinstance(files, str) else files:
            print(f'  {name:12s}{path}')


def main() -> None:
    """Run all stages."""
    args = parse_args()
    work_dir = args.work_dir
    summary_file = work_dir / 'summary.json'
    eval_dir, bev_dir = work_dir / 'eval', work_dir / 'bev'
    curve = work_dir / 'training_curve.png'
    # The results of an earlier run must not pass for those of this one.
    for old in (summary_file, curve, *bev_dir.glob('*.png')):
        old.unlink(missing_ok=True)
    # The configs read these, see configs/_base_/datasets.
    os.environ['SIGPLUG_DATA_ROOT'] = f'{args.data_root}/'
    os.environ['SIGPLUG_DATA_VERSION'] = 'v1.0-mini'
    hide_unusable_gpus()
    config = relative(args.config)

    stages = {}
    stages['data'] = run_stage(
        'data', 'dataset_converters/create_synthetic_nuscenes.py',
        '--out', args.data_root, '--seed', DATA_SEED,
        *(['--samples-per-scene', args.samples_per_scene]
          if args.samples_per_scene else []))
    stages['train'] = run_stage(
        'train', 'train.py', config, '--work-dir', work_dir,
        *(['--amp'] if args.amp else []),
        *(['--resume'] if args.resume else []),
        '--cfg-options', f'randomness.seed={args.seed}')
    checkpoint = relative((work_dir / 'last_checkpoint').read_text())
    stages['test'] = run_stage(
        'test', 'test.py', config, checkpoint, '--work-dir', eval_dir)
    stages['pictures'] = run_stage(
        'pictures', 'analysis_tools/visualize_bev.py', config, checkpoint,
        '--out-dir', bev_dir, '--num', 4)
    stages['curve'] = run_stage(
        'curve', 'analysis_tools/plot_training.py', work_dir, '--out', curve)

    summary = dict(
        config=config,
        seed=args.seed,
        amp=args.amp,
        data_seed=DATA_SEED,
        data_root=str(args.data_root),
        metrics=read_metrics(eval_dir),
        seconds=round(sum(s['seconds'] for s in stages.values()), 1),
        peak_memory_mib=max(s['peak_memory_mib'] for s in stages.values()),
        stages=stages,
        machine=describe_machine(),
        versions=list_versions(),
        files=dict(
            checkpoint=checkpoint,
            pictures=sorted(map(str, bev_dir.glob('*.png'))),
            curve=str(curve),
            summary=str(summary_file)))
    write_json(summary_file, summary)
    report(summary)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
