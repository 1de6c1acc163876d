"""Pictures of squares, and a few steps of training on them."""

import copy

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData


def make_batch(boxes_of_images, size=96, num_classes=3):
    """A batch as a data loader gives it, with a bright rectangle where an instance is.

    Args:
        boxes_of_images: Per image, whole-numbered boxes (x1, y1, x2, y2); the class of an
            instance is its place modulo ``num_classes``.
        size: Side of the images in pixels.
        num_classes: Classes.
    """
    inputs, samples = [], []
    generator = torch.Generator().manual_seed(1)
    for number, boxes in enumerate(boxes_of_images):
        image = torch.randint(0, 60, (3, size, size), generator=generator, dtype=torch.uint8)
        planes = np.zeros((len(boxes), size, size), np.uint8)
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            planes[i, y1:y2, x1:x2] = 1
            image[i % num_classes, y1:y2, x1:x2] += 150
        gt = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.arange(len(boxes)) % num_classes,
            masks=BitmapMasks(planes, size, size),
        )
        nothing = InstanceData(
            bboxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.long),
            masks=BitmapMasks(planes[:0], size, size),
        )
        shape = (size, size)
        sample = DetDataSample(
            gt_instances=gt,
            ignored_instances=nothing,
            metainfo=dict(
                img_id=number,
                img_shape=shape,
                ori_shape=shape,
                pad_shape=shape,
                batch_input_shape=shape,
                scale_factor=(1.0, 1.0),
            ),
        )
        inputs.append(image)
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


TWO_IMAGES = [
    [(8, 10, 50, 60), (40, 40, 90, 88), (60, 5, 80, 30)],
    [(20, 20, 70, 75), (30, 60, 60, 90)],
]


def losses_of(model, batch):
    """Losses of one batch, by name."""
    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    return model(**data, mode="loss")


def total(losses):
    """The sum of whatever is a loss."""
    parts = [value for name, value in losses.items() if "loss" in name]
    return sum(sum(part) if isinstance(part, list) else part for part in parts)


def train_a_little(model, batch, iterations=12, lr=2e-3, seed=0):
    """A few steps on one batch; returns the total losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    model.train()
    history = []
    torch.manual_seed(seed)
    for _ in range(iterations):
        loss = total(losses_of(model, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss))
    return history
