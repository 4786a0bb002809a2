"""The results of an evaluation, and files that are written whole."""
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigplug.files import replacing

TP_ERRORS = ('mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE')


def summarize_nuscenes(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Pick the main values out of what mmdet3d's NuScenesMetric reports.

    Its names may have prefixes.

    Returns:
        dict[str, Any]: ``mAP``, ``NDS``, the ``class_AP`` of each class (the
        mean over the distances 0.5, 1, 2 and 4 m) and the ``TP_errors``.
    """
    values = {key.rpartition('/')[2]: value for key, value in metrics.items()}
    class_ap: dict[str, list[float]] = {}
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


def read_nuscenes_metrics(work_dir: Path) -> dict[str, Any]:
    """Summarise the results of the last test with a work dir."""
    newest = max(
        work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    return summarize_nuscenes(json.loads(newest.read_text()))


def write_text(path: Path | str, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as partial:
        Path(partial).write_text(text)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + '\n')
