"""The panoptic section of docs/data.md, as a user would copy it, on files of their own."""

import json
import re

import numpy as np
from mmdet.registry import DATASETS, METRICS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from mmdet_plus.evaluation import pq_from_files
from mmdet_plus.evaluation.id_maps import encode_id_map

# In no order, and neither 1 to N nor things first.
KINDS = dict(sky=(40, 0), cat=(7, 1), grass=(9, 0), dog=(2, 1), road=(3, 0))


def write_set(root, split):
    gt = np.zeros((32, 40), np.int64)
    gt[16:], gt[4:20, 6:20] = 70000, 5
    (root / f"panoptic_{split}").mkdir()
    (root / f"panoptic_{split}/a.png").write_bytes(encode_id_map(gt))
    (root / split).mkdir()
    (root / split / "a.jpg").touch()
    segments = [
        dict(id=ident, category_id=category, area=int((gt == ident).sum()), bbox=[0, 0, 9, 9])
        for ident, category in ((70000, 9), (5, 2))
    ]
    content = dict(
        images=[dict(id=1, file_name="a.jpg", height=32, width=40)],
        annotations=[dict(image_id=1, file_name="a.png", segments_info=segments)],
        categories=[dict(id=i, name=name, isthing=kind) for name, (i, kind) in KINDS.items()],
    )
    (root / f"panoptic_{split}.json").write_text(json.dumps(content))


def test_the_pages_config_and_call(repo_root, tmp_path, monkeypatch):
    page = (repo_root / "docs/data.md").read_text().partition("## Panoptic data and its")[2]
    config, call = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    base = "../shapes/panoptic-fpn_r18_shapes.py"
    assert f'"{base}"' in config
    config = config.replace(base, (repo_root / "configs" / base[3:]).as_posix())
    (tmp_path / "own.py").write_text(config.replace("path/to", tmp_path.as_posix()))
    for split in ("train", "val"):
        write_set(tmp_path, split)
    cfg = Config.fromfile(str(tmp_path / "own.py"))
    register_all_modules()
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.pipeline = []
        dataset = DATASETS.build(loader.dataset)
        assert [segment["category"] for segment in dataset[0]["segments_info"]] == [3, 1]
    metric = METRICS.build(cfg.test_evaluator)
    metric.dataset_meta = dataset.metainfo
    things, stuff = (len(dataset.metainfo[f"{kind}_classes"]) for kind in ("thing", "stuff"))
    model = MODELS.build(cfg.model)
    assert model.roi_head.mask_head.num_classes == model.roi_head.bbox_head.num_classes == things
    for part in (model.semantic_head, model.panoptic_fusion_head):
        assert (part.num_things_classes, part.num_stuff_classes) == (things, stuff)

    monkeypatch.chdir(tmp_path)
    content = json.loads((tmp_path / "panoptic_val.json").read_text())
    (tmp_path / "predictions.json").write_text(json.dumps(dict(annotations=content["annotations"])))
    (tmp_path / "predictions").symlink_to(tmp_path / "panoptic_val")
    assert call.startswith("from mmdet_plus.evaluation import pq_from_files\n")
    assert eval(call.strip().splitlines()[-1], dict(pq_from_files=pq_from_files)) == 100
