"""Looks for a config's data files before anything expensive is built."""

import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from mmseg_plus.common.errors import UserError
from mmseg_plus.common.files import is_remote

# How to get the data, by the start of the dataset's type.
_MENDS = {
    "Shapes": "make it with: python tools/make_shapes.py {root}",
    "CheckedCoco": "put images and annotations in COCO's format there (see cocodataset.org)",
    "Coco": "put COCO there (cocodataset.org: images and annotations)",
    "Cityscapes": "put Cityscapes there (cityscapes-dataset.com: leftImg8bit and gtFine)",
}


def check_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Stop with a clear error where the files of a data set or of its evaluator are not there.

    Args:
        cfg: The config; relative paths count from the current folder, as in mmengine.
        loaders: Which of ``train_dataloader``, ``val_dataloader``, ``test_dataloader`` to check,
            the last two with ``val_evaluator`` and ``test_evaluator``; those that the config lacks
            are skipped.

    Raises:
        UserError: An annotation file, an image folder or the root folder is missing, or an
            evaluator reads another annotation file than the data set that it judges.
    """
    for loader in loaders:
        datasets, metrics = _readers(cfg, loader)
        for key, dataset in datasets:
            for field, path, kind in _files(dataset):
                if not _exists(path, kind):
                    raise UserError(
                        f"{path}: there is no such {kind} ({key}.{field} of {cfg.filename}); "
                        f"{_mend(cfg, loaders, key, dataset)}"
                    )
        for key, metric in metrics:
            for field, path, kind in _metric_files(metric):
                if not _exists(path, kind):
                    raise UserError(
                        f"{path}: there is no such {kind} ({key}.{field} of {cfg.filename}); say "
                        f"where it is: --cfg-options {key}.{field}={kind.upper()}"
                    )
            if len(datasets) == 1:
                _require_same_file(cfg, datasets[0], (key, metric))


def _exists(path: Path, kind: str) -> bool:
    return path.is_dir() if kind == "folder" else path.is_file()


def _require_same_file(cfg: Config, dataset: tuple[str, dict], metric: tuple[str, dict]) -> None:
    """Refuse ground truth of other images, left over where only the data set's path was changed."""
    ours = [path for field, path, _ in _files(dataset[1]) if field == "ann_file"]
    theirs = [path for field, path, _ in _metric_files(metric[1]) if field == "ann_file"]
    if _is_panoptic(dataset[1]) != _is_panoptic(metric[1]):
        return
    for own, other in zip(ours, theirs, strict=False):
        if own.suffix == other.suffix == ".json" and not os.path.samefile(own, other):
            raise UserError(
                f"{other}: {metric[0]}.ann_file of {cfg.filename} is another file than {own} of "
                f"{dataset[0]}, on whose images it judges predictions; give the same one: "
                f"--cfg-options {metric[0]}.ann_file={own}"
            )


def _readers(cfg: Config, loader: str) -> tuple[list[tuple[str, dict]], list[tuple[str, dict]]]:
    """The data sets of a loader, and the metrics that judge on it, each with its key."""
    datasets = list(_leaves((cfg.get(loader) or {}).get("dataset"), f"{loader}.dataset"))
    name = loader.replace("dataloader", "evaluator")
    judges = datasets and name in ("val_evaluator", "test_evaluator")
    return datasets, list(_metrics(cfg.get(name), name)) if judges else []


def _metrics(evaluator: object, key: str) -> Iterator[tuple[str, dict]]:
    """Walk through the lists that an evaluator may be, or hold."""
    if isinstance(evaluator, (list, tuple)):
        for number, part in enumerate(evaluator):
            yield from _metrics(part, f"{key}.{number}")
    elif isinstance(evaluator, dict) and "metrics" in evaluator:
        yield from _metrics(evaluator["metrics"], f"{key}.metrics")
    elif isinstance(evaluator, dict):
        yield key, evaluator


def _leaves(dataset: object, key: str) -> Iterator[tuple[str, dict]]:
    """Walk through dataset wrappers to the data sets that read files."""
    if not isinstance(dataset, dict):
        return
    if isinstance(dataset.get("dataset"), dict):
        yield from _leaves(dataset["dataset"], f"{key}.dataset")
    elif isinstance(dataset.get("datasets"), (list, tuple)):
        for number, part in enumerate(dataset["datasets"]):
            yield from _leaves(part, f"{key}.datasets.{number}")
    else:
        yield key, dataset


def _files(dataset: dict) -> Iterator[tuple[str, Path, str]]:
    root, remote = dataset.get("data_root") or "", dataset.get("backend_args")
    if is_remote(root, remote):
        return
    if root:
        yield "data_root", Path(root), "folder"
    ann_file = dataset.get("ann_file")
    if isinstance(ann_file, str) and ann_file and not is_remote(ann_file):
        # mmseg names a list of images here, if anything; either way a file.
        yield "ann_file", Path(root, ann_file), "file"
    prefixes = dataset.get("data_prefix")
    for name, prefix in prefixes.items() if isinstance(prefixes, dict) else ():
        if isinstance(prefix, str) and prefix and not is_remote(prefix):
            yield f"data_prefix.{name}", Path(root, prefix), "folder"


def _metric_files(metric: dict) -> Iterator[tuple[str, Path, str]]:
    for field, kind in (("ann_file", "file"), ("seg_prefix", "folder")):
        path = metric.get(field)
        if isinstance(path, str) and path and not is_remote(path, metric.get("backend_args")):
            yield field, Path(path), kind


def _type_name(part: dict) -> str:
    kind = part.get("type")
    kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    return kind.rpartition(".")[2]


def _is_panoptic(part: dict) -> bool:
    return "panoptic" in _type_name(part).lower()


def _mend(cfg: Config, loaders: tuple[str, ...], key: str, dataset: dict) -> str:
    root = dataset.get("data_root")
    options = _root_options(cfg, loaders, root) if root else [f"{key}.data_root=DIR"]
    own = f"or say where it is: --cfg-options {' '.join(options)}"
    for start, mend in _MENDS.items():
        if _type_name(dataset).startswith(start):
            return f"{mend.format(root=root or 'DIR')}, {own}"
    return f"put the data there, {own}"


def _root_options(cfg: Config, loaders: tuple[str, ...], root: str) -> list[str]:
    """All that has to change with a root folder: a config joins evaluators' paths when it is read.

    Returns:
        ``key=value`` pairs, in which DIR stands for the new root.
    """
    options = []
    for loader in loaders:
        datasets, metrics = _readers(cfg, loader)
        for key, dataset in datasets:
            if os.path.normpath(dataset.get("data_root") or "") == os.path.normpath(root):
                options.append(f"{key}.data_root=DIR")
        for key, metric in metrics:
            for field, path, _ in _metric_files(metric):
                if path.is_relative_to(root):
                    options.append(f"{key}.{field}={Path('DIR', path.relative_to(root))}")
    return options
