r"""Train several configs with several seeds, and compare their results.

All configs are compared with the first one. After an interruption the same
command continues: finished runs stay, and a run that was stopped continues
from its last checkpoint, which is marked in results.json. A result is for one
config and data set; the versions of the code are stored with it.

Example:
    python tools/analysis_tools/ablate.py configs/ablation/*_stock_*.py \
        configs/ablation/*.py --seeds 3
"""
import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from comparison import format_tables, gather
from mmengine.config import Config
from plots.ablation import draw_ablation

from sigplug.cli import preflight, process
from sigplug.cli.machine import describe_machine, list_versions
from sigplug.cli.results import read_nuscenes_metrics, write_json
from sigplug.cli.stages import hide_unusable_gpus, relative, run_stage
from sigplug.visualization import save_png

TOOLS = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'configs', nargs='+', type=Path,
        help='configs to compare; one that is named again counts once')
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
        '--difficulty', choices=('standard', 'hard'), default='hard',
        help='of the data set (default: %(default)s)')
    parser.add_argument(
        '--samples-per-scene', type=int, default=40, metavar='N',
        help='key frames in each scene (default: %(default)s, on which '
        'configs/ablation count)')
    args = parser.parse_args()
    args.configs = list(dict.fromkeys(map(Path.resolve, args.configs)))
    args.names = short_names(args.configs)
    if len(set(args.names)) < len(args.names):
        parser.error('configs: two files have the same name, which stands '
                     f'for them in the tables, among {", ".join(args.names)}')
    return args


def short_names(configs: list[Path]) -> list[str]:
    """Return the parts of the configs' names in which they differ."""
    parts = [config.stem.replace('_', '-').split('-') for config in configs]
    common = set.intersection(*map(set, parts))
    return ['-'.join(part for part in name if part not in common) or
            config.stem for name, config in zip(parts, configs)]


def digest(cfg: Config, manifest: bytes) -> str:
    """Return a key of the config and the data, which determine a result."""
    return hashlib.sha256(cfg.dump().encode() + manifest).hexdigest()[:16]


def run(config: str, seed: int, amp: bool, work_dir: Path) -> dict[str, Any]:
    """Train with one seed, or continue that training, and evaluate."""
    work_dir.mkdir(parents=True, exist_ok=True)
    last = work_dir / 'last_checkpoint'
    resumed = last.exists()
    run_stage(
        'train', TOOLS / 'train.py', config, '--work-dir', work_dir,
        *(['--amp'] if amp else []),
        *(['--resume'] if resumed else []),
        '--cfg-options', f'randomness.seed={seed}',
        log=work_dir / 'train.log')
    checkpoint = relative(last.read_text())
    run_stage('test', TOOLS / 'test.py', config, checkpoint, '--work-dir',
              work_dir / 'eval', log=work_dir / 'test.log')
    return dict(
        config=config, seed=seed, amp=amp, resumed=resumed,
        **read_nuscenes_metrics(work_dir / 'eval'),
        machine=describe_machine(), versions=list_versions())


def write_summary(out_dir: Path, results: list[dict[str, Any]]) -> str:
    names, values = gather(results)
    tables = format_tables(names, values)
    write_json(out_dir / 'results.json', results)
    (out_dir / 'results.md').write_text(tables)
    save_png(draw_ablation(names, values), out_dir / 'results.png')
    return tables


def main() -> None:
    args = parse_args()
    os.environ['SIGPLUG_DATA_ROOT'] = f'{args.data_root}/'
    os.environ['SIGPLUG_DATA_VERSION'] = 'v1.0-mini'
    hide_unusable_gpus()
    cfgs = [preflight.load_config(str(config)) for config in args.configs]
    run_stage('data',
              TOOLS / 'dataset_converters/create_synthetic_nuscenes.py',
              '--out', args.data_root, '--difficulty', args.difficulty,
              '--samples-per-scene', args.samples_per_scene)
    manifest = (args.data_root / 'synthetic_nuscenes.json').read_bytes()
    # Another config, or another data set, has another folder.
    folders = [args.out_dir / f'{config.stem}-{digest(cfg, manifest)}'
               for config, cfg in zip(args.configs, cfgs)]
    variants = [(f'{name} amp' if amp else name, amp, relative(config), folder)
                for amp in ([False, True] if args.amp else [False])
                for name, config, folder in zip(args.names, args.configs,
                                                folders)]
    results: list[dict[str, Any]] = []
    # Seed by seed, so that an interrupted run can be compared too.
    for seed in range(args.seeds):
        for name, amp, config, folder in variants:
            work_dir = folder / f'seed{seed}{"-amp" if amp else ""}'
            file = work_dir / 'result.json'
            print(f'{name}, seed {seed}: {work_dir}', flush=True)
            if not file.exists():
                write_json(file, run(config, seed, amp, work_dir))
            results.append(dict(name=name, **json.loads(file.read_text())))
        tables = write_summary(args.out_dir, results)
    print(f'\n{tables}')
    for name in ('results.md', 'results.json', 'results.png'):
        print(args.out_dir / name)


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
