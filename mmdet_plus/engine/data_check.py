"""Looks for a config's data files before anything expensive is built."""

from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from mmdet_plus.engine.errors import UserError

# How to get the data, by the start of the dataset's type.
_MENDS = {
    "Shapes": "make it with: python tools/make_shapes.py {root}",
    "CheckedCoco": "put images and annotations in COCO's format there (see cocodataset.org)",
    "Coco": "put COCO there (cocodataset.org: images and annotations)",
    "Cityscapes": "put Cityscapes there (cityscapes-dataset.com: leftImg8bit and gtFine)",
}


def check_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Stop with a clear error where a data set's files are not there.

    Args:
        cfg: The config; relative paths count from the current folder, as in mmengine.
        loaders: Which of ``train_dataloader``, ``val_dataloader``, ``test_dataloader`` to check;
            those that the config lacks are skipped.

    Raises:
        UserError: An annotation file, an image folder or the root folder is missing.
    """
    for loader in loaders:
        dataset = (cfg.get(loader) or {}).get("dataset")
        for key, leaf in _leaves(dataset, f"{loader}.dataset"):
            for field, path, kind in _files(leaf):
                exists = path.is_dir() if kind == "folder" else path.is_file()
                if not exists:
                    raise UserError(
                        f"{path}: there is no such {kind} ({key}.{field} of {cfg.filename}); "
                        f"{_mend(leaf, key)}"
                    )


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
    root = dataset.get("data_root") or ""
    if _is_remote(root):
        return
    if root:
        yield "data_root", Path(root), "folder"
    ann_file = dataset.get("ann_file")
    if isinstance(ann_file, str) and ann_file and not _is_remote(ann_file):
        # mmseg names a list of images here, if anything; either way a file.
        yield "ann_file", Path(root, ann_file), "file"
    prefixes = dataset.get("data_prefix")
    for name, prefix in prefixes.items() if isinstance(prefixes, dict) else ():
        if isinstance(prefix, str) and prefix and not _is_remote(prefix):
            yield f"data_prefix.{name}", Path(root, prefix), "folder"


def _is_remote(path: str) -> bool:
    return "://" in str(path) or str(path).startswith("s3:")


def _mend(dataset: dict, key: str) -> str:
    kind = dataset.get("type")
    kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    kind = kind.rpartition(".")[2]
    root = dataset.get("data_root") or "DIR"
    own = f"or say where it is: --cfg-options {key}.data_root=DIR"
    for start, mend in _MENDS.items():
        if kind.startswith(start):
            return f"{mend.format(root=root)}, {own}"
    return f"put the data there, {own}"
