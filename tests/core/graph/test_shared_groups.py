"""Groups from the family map and from the dataflow: one of them is enough, both must agree."""

from __future__ import annotations

import pytest

from octavo.core.errors import PlanError
from octavo.core.graph import shared_input_groups
from octavo.core.model.description import ModelDescription

ALL = ["q", "k", "v", "gate", "up", "down"]
MAP = ModelDescription("llama", (), {}, same_input=(("q", "k", "v"), ("gate", "up")))
PROBED = [("v", "k", "q"), ("up", "gate")]
SORTED = (("gate", "up"), ("k", "q", "v"))


def test_either_is_enough_and_the_order_does_not_matter() -> None:
    assert shared_input_groups(ALL, MAP, None) == SORTED
    assert shared_input_groups(ALL, None, PROBED) == SORTED
    assert shared_input_groups(ALL, MAP, PROBED) == SORTED
    assert shared_input_groups(reversed(ALL), MAP, PROBED[::-1]) == SORTED


def test_nothing_is_known() -> None:
    assert shared_input_groups(ALL, None, None) == ()
    assert shared_input_groups(ALL, None, []) == ()


def test_only_layers_that_matter_are_grouped() -> None:
    assert shared_input_groups(["q", "v", "up"], MAP, PROBED) == (("q", "v"),)
    assert shared_input_groups([], MAP, PROBED) == ()


def test_differences_in_layers_that_do_not_matter_are_none() -> None:
    assert shared_input_groups(["q", "k", "v"], MAP, [("q", "k", "v"), ("gate", "down")]) == (
        ("k", "q", "v"),
    )


@pytest.mark.parametrize(
    "probed", [[("q", "k", "v")], [("q", "k"), ("gate", "up")], [], [("gate", "up", "v")]], ids=str
)
def test_a_disagreement_shows_both_sides(probed: list[tuple[str, ...]]) -> None:
    flow = {tuple(sorted(group)) for group in probed}
    with pytest.raises(PlanError) as caught:
        shared_input_groups(ALL, MAP, probed)

    assert str(caught.value) == (
        "the family map 'llama' and the model's own dataflow disagree on which layers read the same tensor. "
        f"Only in the map: {sorted(set(SORTED) - flow)}. Only in the dataflow: {sorted(flow - set(SORTED))}. "
        "Correct the map, or report the model"
    )
