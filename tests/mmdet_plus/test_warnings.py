"""What users see on stderr when a tool reads a config."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import warnings
from mmdet_plus.engine.config import load_config
load_config("mr-rcnn_r50_fpn_9k_coco")
warnings.warn("pkg_resources is deprecated as an API, says setuptools")
warnings.warn("another warning")
"""


def test_configs_are_read_without_the_warning_of_pkg_resources_alone():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert "pkg_resources" not in done.stderr
    assert "UserWarning: another warning" in done.stderr
