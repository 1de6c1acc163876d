"""Time of the occlusion head in a crowd, its network beside the same without sharing work.

Weights are random, the paper's size: they change no time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from mmdet_plus.panoptic_fusion import fuse_soft_occlusion
from mmdet_plus.refine import OcclusionHead, OcclusionNetwork
from mmdet_plus.refine.occlusion import Priors, overlapping_pairs

from .ops import Case, measure, use_threads
from .timing import environment

CLASSES, CHANNELS = 80, 256
STRIDES = (4, 8, 16, 32)
# Pairs at a time, as many as ours.
_BATCH = 64


def crowd(instances: int, size: tuple[int, int], device: str = "cpu") -> InstanceData:
    """Ellipses of a fifth to a tenth of the picture that stand in each other's way.

    Args:
        instances: How many.
        size: (H, W).
        device: Where.

    Returns:
        ``bboxes``, ``scores`` from 0.5 to 1, ``labels`` and ``masks``; the same ones every time.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = size
    centres = torch.rand(instances, 2, generator=generator) * torch.tensor([width, height])
    sides = (0.05 + 0.05 * torch.rand(instances, 2, generator=generator)) * max(size)
    rows, cols = torch.arange(height)[:, None], torch.arange(width)
    masks = torch.stack(
        [
            ((cols - x) / a) ** 2 + ((rows - y) / b) ** 2 < 1
            for (x, y), (a, b) in zip(centres, sides, strict=True)
        ]
    )
    limits = torch.tensor([width, height, width, height])
    boxes = torch.cat([centres - sides, centres + sides], 1).clamp(min=0).minimum(limits)
    return InstanceData(
        bboxes=boxes.to(device),
        scores=(0.5 + 0.5 * torch.rand(instances, generator=generator)).to(device),
        labels=torch.randint(CLASSES, (instances,), generator=generator).to(device),
        masks=masks.to(device),
    )


def both_concatenated(network: OcclusionNetwork, priors: Priors, pairs: Tensor) -> Tensor:
    """O's logits as the paper tells it: both instances are concatenated before the convolutions."""
    seen = network.read(priors)
    weight = torch.cat([network.first.weight, network.second.weight], 1)
    logits = [priors.masks.new_zeros(0)]
    for part in pairs.split(_BATCH):
        both = torch.cat([seen[part[:, 0]], seen[part[:, 1]]], 1)
        features = network.convs(F.conv2d(both, weight, network.first.bias, padding=1))
        logits.append(network.fc_occlusion(F.relu(network.fc(features.flatten(1))))[:, 0])
    return torch.cat(logits)


@torch.no_grad()
def occlusion_speed(
    instances: int = 100,
    size: tuple[int, int] = (800, 1216),
    repeats: int = 3,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure the occlusion head on one picture.

    Args:
        instances: In it.
        size: (H, W).
        repeats: Rounds, of which the median counts.
        device: ``cpu``, with one thread, or a GPU.

    Returns:
        A record: ``environment``, ``instances``, ``pairs`` that overlap and ``every_pair``,
        ``head_seconds`` of all that the head does, ``fusion_seconds`` and ``rows`` as of the
        operators.
    """
    extractor = dict(
        type="SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
        out_channels=CHANNELS,
        featmap_strides=list(STRIDES),
    )
    head = OcclusionHead(CLASSES, extractor)
    head.init_weights()
    head.eval().to(device)
    results = crowd(instances, size, device)
    levels = [torch.randn(1, CHANNELS, size[0] // s, size[1] // s, device=device) for s in STRIDES]
    one = results.scores.new_ones(4)
    pairs = overlapping_pairs(results.masks, head.overlap_thr)
    priors = head.priors(levels, 0, results, results.bboxes)
    torch.testing.assert_close(
        head.network(priors, pairs[:_BATCH]),
        both_concatenated(head.network, priors, pairs[:_BATCH]),
        **_TOLERANCE,
    )
    head.predict(levels, [results], [one])
    sem = torch.zeros(size, dtype=torch.int32, device=device)
    cases = {
        "network": Case(
            "occlusion network, overlapping pairs",
            "the same, both instances concatenated",
            lambda: head.network(priors, pairs),
            lambda: both_concatenated(head.network, priors, pairs),
        ),
        "head": Case(
            "occlusion head: overlaps, masks, features, network",
            "soft occlusion fusion",
            lambda: head.predict(levels, [results], [one]),
            lambda: fuse_soft_occlusion(
                results.masks, results.scores, results.labels, sem, results.occlusion
            ),
        ),
    }
    threads = 1 if device == "cpu" else torch.get_num_threads()
    with use_threads(threads):
        rows = {name: measure(case, repeats, threads, device) for name, case in cases.items()}
    every = instances * (instances - 1)
    return {
        "environment": environment() | {"threads": threads},
        "device": device,
        "size": list(size),
        "instances": instances,
        "pairs": len(pairs),
        "every_pair": every,
        "head_seconds": rows["head"]["seconds"],
        "fusion_seconds": rows["head"]["baseline_seconds"],
        "rows": [rows["network"]],
    }


# Sums of thousands of products, in another order.
_TOLERANCE = dict(rtol=1e-3, atol=1e-4)


def markdown(record: dict[str, Any]) -> str:
    """The record as a table for the documentation."""
    lines = ["| what | s | beside | its s | times faster |", "|---|---|---|---|---|"]
    for row in record["rows"]:
        lines.append(
            f"| {row['name']} | {row['seconds']:.2f} | {row['baseline']} | "
            f"{row['baseline_seconds']:.2f} | {row['times_faster']:.2f} |"
        )
    lines += [
        "",
        f"{record['instances']} instances, {record['pairs']} of {record['every_pair']} ordered "
        f"pairs overlap. All that the head does takes {record['head_seconds']:.2f} s, the fusion "
        f"{record['fusion_seconds']:.2f} s.",
    ]
    return "\n".join(lines) + "\n"
