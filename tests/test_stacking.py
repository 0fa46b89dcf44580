"""Frames in storage become stacked observations by one rule, for the store and for the replay."""

import numpy as np

from jepa_rl.data.stacking import stack_frames


def test_frames_are_stacked_oldest_first_and_the_first_one_is_repeated_before_the_start():
    column = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)  # an episode begins in row 0, another in row 2
    stacks = stack_frames(column, np.array([0, 2]), np.array([[0, 1], [1, 2]]), 3)
    assert stacks.shape == (2, 2, 3, 1, 1) and stacks.dtype == np.uint8
    assert stacks[..., 0, 0].tolist() == [[[0, 0, 0], [0, 0, 1]], [[2, 2, 3], [2, 3, 4]]]


def test_an_episode_that_reaches_the_last_row_goes_on_in_the_first():
    column = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
    assert stack_frames(column, np.array([3]), np.array([[0, 2]]), 2)[0, :, :, 0, 0].tolist() == [
        [3, 3],
        [0, 1],
    ]


def test_channels_of_a_frame_stay_together():
    column = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    stacked = stack_frames(column, np.array([0]), np.array([[1]]), 2)[0, 0]
    np.testing.assert_array_equal(stacked, np.concatenate([column[0], column[1]]))
    stacked[:] = 0
    assert column[1, 2, 1, 1] == 23  # a copy
