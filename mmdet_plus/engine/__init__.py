"""Training and testing behind ``tools/``: exact resuming, checks of what the user gives, gloo."""

from mmdet_plus.engine.amp import CPUAmpOptimWrapper
from mmdet_plus.engine.checkpoint_match import CheckpointMatchHook, FrozenWeightsHook
from mmdet_plus.engine.class_match import ClassMatchHook
from mmdet_plus.engine.distributed import SyncStatisticsHook
from mmdet_plus.engine.errors import UserError, run_command
from mmdet_plus.engine.resumable import (
    ResumableEpochBasedTrainLoop,
    ResumableIterBasedTrainLoop,
    SeededBatchSampler,
    SeededDataset,
    make_resumable,
)
from mmdet_plus.engine.testing import prepare_test_cfg, test
from mmdet_plus.engine.training import prepare_train_cfg, train
from mmseg_plus.common.compat import use_safe_checkpoint_loading

# A config that imports this package resumes and loads in every program, not under tools/ alone.
use_safe_checkpoint_loading()

__all__ = [
    "CPUAmpOptimWrapper",
    "CheckpointMatchHook",
    "FrozenWeightsHook",
    "ClassMatchHook",
    "ResumableEpochBasedTrainLoop",
    "ResumableIterBasedTrainLoop",
    "SeededBatchSampler",
    "SeededDataset",
    "SyncStatisticsHook",
    "UserError",
    "make_resumable",
    "prepare_test_cfg",
    "prepare_train_cfg",
    "run_command",
    "test",
    "train",
    "use_safe_checkpoint_loading",
]
