"""The authors' checkpoints: their names are ours, up to what a program has put before them."""

from collections.abc import Mapping

from torch import Tensor

# One name that the network must have, and none other has.
_MARK = "backbone.conv_mask.weight"
_PARTS = ("backbone.", "decode_head.")


def without_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what a distributed training or another program put before each name.

    Args:
        state_dict: Parameters of a refinement network by name, such as
            ``module.backbone.conv1.weight``.

    Returns:
        The same tensors under the names of :class:`BoundaryPatchRefiner`, nothing left out.

    Raises:
        ValueError: It is no refinement network, or a name does not have the prefix.
    """
    marks = [name for name in state_dict if name == _MARK or name.endswith("." + _MARK)]
    if len(marks) != 1:
        raise ValueError(
            f"not a refinement network: expected one parameter {_MARK}, found {len(marks)}; of the "
            f"{len(state_dict)} names the first is {next(iter(state_dict), 'none')}"
        )
    prefix = marks[0].removesuffix(_MARK)
    converted = {}
    for name, value in state_dict.items():
        short = name.removeprefix(prefix)
        if not name.startswith(prefix) or not short.startswith(_PARTS):
            raise ValueError(f"{name} is no part of a refinement network ({prefix}backbone.*, ...)")
        converted[short] = value
    return converted
