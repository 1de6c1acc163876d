"""Time of the occlusion head in a crowd, beside doing the same pair by pair and for every pair.

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
# So many pairs show the time of one.
_SAMPLE = 24


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


def pair_by_pair(network: OcclusionNetwork, priors: Priors, pairs: Tensor) -> Tensor:
    """O's logits as the paper tells it: both instances are concatenated before the convolutions."""
    seen = network.read(priors)
    weight = torch.cat([network.first.weight, network.second.weight], 1)
    logits = []
    for first, second in pairs:
        both = torch.cat([seen[first], seen[second]])[None]
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
        ``head`` (seconds of all of it, and of the same for every pair, estimated from the time of
        one), ``fusion_seconds`` and ``rows`` as of the operators.
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
    sample = pairs[:_SAMPLE]
    torch.testing.assert_close(
        head.network(priors, sample), pair_by_pair(head.network, priors, sample), **_TOLERANCE
    )
    head.predict(levels, [results], [one])
    sem = torch.zeros(size, dtype=torch.int32, device=device)
    cases = {
        "head": Case(
            "occlusion head, overlapping pairs",
            "its network, pair by pair, both concatenated",
            lambda: head.predict(levels, [results], [one]),
            lambda: pair_by_pair(head.network, priors, pairs),
        ),
        "sample": Case(
            f"network, {len(sample)} pairs",
            "pair by pair, both concatenated",
            lambda: head.network(priors, sample),
            lambda: pair_by_pair(head.network, priors, sample),
        ),
        "order": Case(
            "soft occlusion fusion",
            "occlusion head",
            lambda: fuse_soft_occlusion(
                results.masks, results.scores, results.labels, sem, results.occlusion
            ),
            lambda: head.predict(levels, [results], [one]),
        ),
    }
    threads = 1 if device == "cpu" else torch.get_num_threads()
    with use_threads(threads):
        rows = {name: measure(case, repeats, threads, device) for name, case in cases.items()}
    every = instances * (instances - 1)
    a_pair = rows["sample"]["baseline_seconds"] / max(len(sample), 1)
    return {
        "environment": environment() | {"threads": threads},
        "device": device,
        "size": list(size),
        "instances": instances,
        "pairs": len(pairs),
        "every_pair": every,
        "head": {
            "seconds": rows["head"]["seconds"],
            "every_pair_seconds_estimated": round(every * a_pair, 2),
        },
        "fusion_seconds": rows["order"]["seconds"],
        "rows": list(rows.values()),
    }


# Sums of thousands of products, in another order.
_TOLERANCE = dict(rtol=1e-3, atol=1e-4)


def markdown(record: dict[str, Any]) -> str:
    """The record as a table for the documentation."""
    lines = ["| what | s | beside | its s | times faster |", "|---|---|---|---|---|"]
    for row in record["rows"][:2]:
        lines.append(
            f"| {row['name']} | {row['seconds']:.3f} | {row['baseline']} | "
            f"{row['baseline_seconds']:.3f} | {row['times_faster']:.2f} |"
        )
    head = record["head"]
    lines += [
        "",
        f"{record['instances']} instances, {record['pairs']} of {record['every_pair']} ordered "
        f"pairs overlap: {head['seconds']:.2f} s. Pair by pair and for every pair it would take "
        f"some {head['every_pair_seconds_estimated']:.0f} s (estimated from the time of a pair). "
        f"Fusing takes {record['fusion_seconds']:.2f} s.",
    ]
    return "\n".join(lines) + "\n"
