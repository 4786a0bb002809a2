"""Train several configs with several seeds, and compare their results.

The first config is the one that the others are compared with. A run that is
interrupted is taken up where it was by the same command.

Example:
    python tools/analysis_tools/ablate.py configs/ablation/*.py --seeds 3
"""
import argparse
import csv
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config
from tqdm import tqdm

from sigplug.datasets import DIFFICULTIES
from sigplug.engine import preflight
from sigplug.engine.ablation import compare, flatten, format_tables
from sigplug.engine.checkpoint import load_safely
from sigplug.engine.machine import describe_machine, list_versions
from sigplug.engine.results import read_nuscenes_metrics, write_json
from sigplug.engine.stages import hide_unusable_gpus, relative, run_stage
from sigplug.visualization import draw_ablation, save_png

TOOLS = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'configs', nargs='+', type=Path, help='configs to compare')
    parser.add_argument(
        '--seeds', type=int, default=3, metavar='N',
        help='train with the seeds 0 to N - 1 (default: %(default)s)')
    parser.add_argument(
        '--amp', action='store_true',
        help='train each config in mixed precision as well, see '
        'tools/train.py')
    parser.add_argument(
        '--out-dir', type=Path, default=Path('work_dirs/ablation'),
        help='folder of the results (default: %(default)s)')
    parser.add_argument(
        '--data-root', type=Path,
        default=Path('data/synthetic_nuscenes_hard'),
        help='folder of the synthetic data set, generated if it is not there '
        '(default: %(default)s)')
    parser.add_argument(
        '--difficulty', choices=DIFFICULTIES, default='hard',
        help='of the data set (default: %(default)s)')
    parser.add_argument(
        '--samples-per-scene', type=int, metavar='N',
        help='key frames in each scene (default: that of the generator)')
    args = parser.parse_args()
    for config in args.configs:
        if not config.is_file():
            parser.error(f'configs: {config} does not exist')
    if len(set(args.configs)) < len(args.configs):
        parser.error('configs: one of them is given twice')
    if args.seeds < 1:
        parser.error(f'--seeds must be at least 1, got {args.seeds}')
    for folder in (args.out_dir, args.data_root):
        if folder.exists() and not folder.is_dir():
            parser.error(f'{folder} must be a folder, but is a file')
    return args


def short_names(configs: list[Path]) -> list[str]:
    """The parts of the configs' names in which they differ."""
    parts = [config.stem.replace('_', '-').split('-') for config in configs]
    common = set.intersection(*map(set, parts))
    return ['-'.join(part for part in name if part not in common) or
            config.stem for name, config in zip(parts, configs)]


def digest(cfg: Config, manifest: bytes) -> str:
    """What a result depends on: a changed config or data set is another."""
    return hashlib.sha256(cfg.dump().encode() + manifest).hexdigest()[:16]


def trained_powers(path: str) -> dict[str, list[float]]:
    """Each parameter ``p`` of the model in a checkpoint."""
    state = load_safely(path)['state_dict']
    return {
        name: [round(p, 4) for p in value.flatten().tolist()]
        for name, value in state.items() if name.rpartition('.')[2] == 'p'
    }


def run(config: Path, seed: int, amp: bool,
        work_dir: Path) -> dict[str, Any]:
    """Train with one seed, or go on with it, and evaluate."""
    work_dir.mkdir(parents=True, exist_ok=True)
    last = work_dir / 'last_checkpoint'
    stage = run_stage(
        'train', TOOLS / 'train.py', config, '--work-dir', work_dir,
        *(['--amp'] if amp else []),
        *(['--resume'] if last.exists() else []),
        '--cfg-options', f'randomness.seed={seed}',
        log=work_dir / 'train.log')
    checkpoint = relative(last.read_text())
    run_stage('test', TOOLS / 'test.py', config, checkpoint, '--work-dir',
              work_dir / 'eval', log=work_dir / 'test.log')
    return dict(**read_nuscenes_metrics(work_dir / 'eval'),
                powers=trained_powers(checkpoint), **stage)


def write_csv(path: Path, results: list[dict[str, Any]]) -> None:
    """One line a run."""
    rows = [dict(name=result['name'], seed=result['seed'], **flatten(result),
                 seconds=result['seconds']) for result in results]
    partial = path.with_name(path.name + '.partial')
    with partial.open('w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


def write_summary(out_dir: Path, results: list[dict[str, Any]]) -> str:
    """All that is made of the runs so far; the tables are returned."""
    write_json(out_dir / 'results.json', dict(
        runs=results, machine=describe_machine(), versions=list_versions()))
    write_csv(out_dir / 'results.csv', results)
    comparison = compare(results)
    tables = format_tables(comparison)
    (out_dir / 'results.md').write_text(tables)
    save_png(draw_ablation(comparison.names, comparison.values),
             out_dir / 'results.png')
    return tables


def main() -> None:
    """Run what is missing, then compare."""
    args = parse_args()
    os.environ['SIGPLUG_DATA_ROOT'] = f'{args.data_root}/'
    os.environ['SIGPLUG_DATA_VERSION'] = 'v1.0-mini'
    hide_unusable_gpus()
    run_stage('data',
              TOOLS / 'dataset_converters/create_synthetic_nuscenes.py',
              '--out', args.data_root, '--difficulty', args.difficulty,
              *(['--samples-per-scene', args.samples_per_scene]
                if args.samples_per_scene else []))
    manifest = (args.data_root / 'synthetic_nuscenes.json').read_bytes()
    names = short_names(args.configs)
    digests = [digest(preflight.load_config(str(config)), manifest)
               for config in args.configs]
    results = []
    # Seed by seed: what an interruption leaves is comparable.
    jobs = [(seed, amp, *job) for seed in range(args.seeds)
            for amp in (False, True)[:1 + args.amp]
            for job in zip(names, args.configs, digests)]
    with tqdm(jobs, unit='run') as bar:
        for seed, amp, name, config, key in bar:
            name += ' amp' * amp
            bar.set_postfix_str(f'{name}, seed {seed}')
            # Another config, or another data set, has another folder.
            work_dir = (args.out_dir / f'{config.stem}-{key}' /
                        f'seed{seed}{"-amp" * amp}')
            file = work_dir / 'result.json'
            if not file.exists():
                result = run(Path(relative(config)), seed, amp, work_dir)
                write_json(file, dict(config=relative(config), seed=seed,
                                      amp=amp, **result))
            results.append(dict(name=name, **json.loads(file.read_text())))
            tables = write_summary(args.out_dir, results)
    print(f'\n{tables}')
    for name in ('results.md', 'results.csv', 'results.json', 'results.png'):
        print(args.out_dir / name)


if __name__ == '__main__':
    sys.exit(preflight.run_tool(main))
