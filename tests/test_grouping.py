"""Which tokens attend to one another: the grouping, its inverse, and the three policies."""

import pytest
import torch

from crossformer_hf.modeling_crossformer import (
    group_tokens,
    padded_groups,
    padding_to_multiple,
    resolve_grouping,
    ungroup_padded_tokens,
    ungroup_tokens,
)


# 0  1  2  3
# 4  5  6  7
# 8  9 10 11
# 12 13 14 15
MAP = torch.arange(16).view(1, 4, 4, 1)


def test_short_distance_groups_are_adjacent():
    groups = group_tokens(MAP, (2, 2), interval=1)
    assert groups[..., 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_long_distance_groups_are_an_interval_apart():
    groups = group_tokens(MAP, (2, 2), interval=2)
    assert groups[..., 0].tolist() == [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]


def test_groups_may_be_rectangles():
    assert group_tokens(MAP, (1, 4))[..., 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert group_tokens(MAP, (2, 1), interval=2)[0, :, 0].tolist() == [0, 8]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "group_size", "interval"),
    [
        (4, 4, (4, 4), 1),
        (6, 12, (3, 2), 1),
        (8, 8, (2, 2), 4),
        (12, 24, (3, 2), 4),
        (28, 14, (7, 7), 2),
        (5, 7, (5, 7), 1),
        (10, 6, (5, 3), 2),
    ],
)
def test_ungrouping_inverts_grouping(batch, height, width, group_size, interval):
    hidden_states = torch.arange(batch * height * width * 2).view(batch, height, width, 2)
    groups = group_tokens(hidden_states, group_size, interval)
    assert groups.shape == (hidden_states.numel() // 2 // (group_size[0] * group_size[1]), groups.shape[1], 2)
    assert torch.equal(ungroup_tokens(groups, group_size, interval, height, width), hidden_states)


def test_padded_groups_hold_real_tokens_and_padding():
    # 0 1 2 .   6  7  8 .
    # 3 4 5 .   9 10 11 .
    # . . . .   .  .  . .
    # . . . .   .  .  . .
    places, is_real = padded_groups(2, 2, 3, (2, 2), interval=2, device=torch.device("cpu"))
    assert is_real.tolist() == [[True, True, False, False], [True, False, False, False]] * 4
    real = [group[mask].tolist() for group, mask in zip(places, is_real, strict=True)]
    assert real == [[0, 2], [1], [3, 5], [4], [6, 8], [7], [9, 11], [10]]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "group_size", "interval"),
    [(4, 4, (4, 4), 1), (5, 11, (3, 2), 1), (9, 8, (2, 2), 4), (1, 23, (3, 2), 4), (25, 14, (7, 7), 2)],
)
def test_ungrouping_inverts_padded_grouping(batch, height, width, group_size, interval):
    hidden_states = torch.arange(batch * height * width * 2).view(batch, height, width, 2)
    places, is_real = padded_groups(batch, height, width, group_size, interval, torch.device("cpu"))
    assert torch.equal(places[is_real].sort().values, torch.arange(batch * height * width))
    groups = hidden_states.flatten(0, 2)[places]
    assert torch.equal(ungroup_padded_tokens(groups, group_size, interval, height, width), hidden_states)


def test_padding_is_the_least_that_reaches_a_multiple():
    assert [padding_to_multiple(size, 4) for size in (1, 3, 4, 5, 8)] == [3, 1, 0, 3, 0]


# (height, width, group_size, interval) -> (group, interval); an interval of None is a short distance layer.
SHARED = [
    ((56, 56, 7, None), ((7, 7), 1)),
    ((50, 57, 7, None), ((7, 7), 1)),
]
FIXED_GROUP = [
    *SHARED,
    ((56, 56, 7, 8), ((7, 7), 8)),
    ((200, 304, 7, 8), ((7, 7), 8)),
    ((57, 56, 7, 8), ((7, 7), 8)),
    ((14, 14, 14, 1), ((14, 14), 1)),
    # one group over a small map, whatever the layer
    ((7, 7, 7, 1), ((7, 7), 1)),
    ((7, 38, 7, None), ((7, 38), 1)),
    ((7, 38, 7, 4), ((7, 38), 1)),
    # no larger group than holds a real token: the rest of a padded square would be masked
    ((24, 50, 7, 8), ((3, 7), 8)),
]
FIXED_INTERVAL = [
    *SHARED,
    # the group grows with the map
    ((56, 56, 7, 8), ((7, 7), 8)),
    ((200, 304, 7, 8), ((25, 38), 8)),
    ((57, 61, 7, 8), ((8, 8), 8)),
    ((25, 38, 7, 1), ((25, 38), 1)),
    # squares of the shorter side on a small map
    ((7, 38, 7, None), ((7, 7), 1)),
    ((5, 38, 7, 4), ((5, 5), 1)),
]
ADAPTIVE_INTERVAL = [
    *SHARED,
    # the interval grows with the map's longer side
    ((56, 56, 7, 2), ((7, 7), 8)),
    ((64, 64, 7, 8), ((7, 7), 10)),
    ((14, 70, 7, 8), ((2, 7), 10)),
    ((7, 38, 7, 4), ((7, 38), 1)),
]
POLICIES = {
    "fixed_group": FIXED_GROUP,
    "fixed_interval": FIXED_INTERVAL,
    "adaptive_interval": ADAPTIVE_INTERVAL,
}


@pytest.mark.parametrize(
    ("grouping", "arguments", "expected"),
    [(grouping, *case) for grouping, cases in POLICIES.items() for case in cases],
)
def test_policies(grouping, arguments, expected):
    assert resolve_grouping(*arguments, grouping) == expected
