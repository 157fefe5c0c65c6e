"""A schedule is a function of the step alone."""

from __future__ import annotations

from typing import Any

import pytest

from octavo import ConfigError, Schedule


def test_weights_and_activations_begin_at_their_steps() -> None:
    schedule = Schedule(weights_from=2, activations_from=5)

    assert [schedule.rounds_weights(step, 0, 3) for step in (1, 2, 9)] == [False, True, True]
    assert [schedule.rounds_activations(step, 2, 3) for step in (4, 5)] == [False, True]


def test_layers_join_from_first_to_last() -> None:
    schedule = Schedule(weights_from=10, activations_from=20, ramp=8)

    assert [sum(schedule.rounds_weights(step, layer, 4) for layer in range(4)) for step in range(9, 18)] == [
        0, 1, 1, 2, 2, 3, 3, 4, 4,
    ]  # fmt: skip
    assert not schedule.rounds_weights(11, 1, 4)
    assert schedule.rounds_activations(20, 0, 4)
    assert not schedule.rounds_activations(25, 3, 4)


def test_nothing_freezes_unless_asked() -> None:
    assert not Schedule().scales_are_frozen(10**9)
    assert not Schedule().batch_norm_is_frozen(10**9)
    assert [Schedule(freeze_scales_at=3).scales_are_frozen(step) for step in (2, 3)] == [False, True]
    assert [Schedule(freeze_batch_norm_at=3).batch_norm_is_frozen(step) for step in (2, 3)] == [False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_from": -1}, r"weights_from=-1; expected a number of steps"),
        ({"ramp": None}, r"ramp=None"),
        ({"freeze_scales_at": 2.5}, r"freeze_scales_at=2\.5"),
        ({"activations_from": True}, r"activations_from=True"),
    ],
)
def test_steps_are_numbers(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule(**changes)
