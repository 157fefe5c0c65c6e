"""Statistics of inputs: what they add up to, and that shards merge."""

import pytest
import torch

from octavo.core.calibration.statistics import InputStatistics, Needs

EVERYTHING = Needs(channels=True, gram=True, held_tokens=8)


def seen(batches: list[torch.Tensor], needs: Needs = EVERYTHING) -> InputStatistics:
    statistics = InputStatistics(batches[0].shape[-1], needs)
    for batch in batches:
        statistics.add(batch)
    return statistics


def batches(tokens: list[int], channels: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, n, channels, generator=generator) for n in tokens]


@pytest.mark.parametrize("tokens", [[2], [3, 4], [40, 1, 7]], ids=str)
def test_sums_are_those_of_all_tokens(tokens: list[int]) -> None:
    data = batches(tokens)
    x = torch.cat([batch[0] for batch in data]).double()

    found = seen(data)

    assert (found.num_tokens, found.num_batches) == (sum(tokens), len(tokens))
    assert torch.equal(found.amax, x.abs().amax(0).float())
    torch.testing.assert_close(found.mean_abs(), x.abs().mean(0).float())
    torch.testing.assert_close(found.mean_square(), x.square().mean(0).float())
    torch.testing.assert_close(found.gram(), (x.T @ x).float(), rtol=1e-5, atol=1e-5)
    means = torch.stack([batch[0].abs().double().mean(0) for batch in data])
    torch.testing.assert_close(found.abs_mean_sum / found.num_batches, means.mean(0))


def test_without_a_gram_squares_are_summed() -> None:
    data = batches([5, 3])

    found = seen(data, Needs(channels=True))

    torch.testing.assert_close(found.mean_square(), torch.cat(data, 1)[0].square().mean(0))


@pytest.mark.parametrize("split", [1, 2])
def test_shards_merge_to_the_whole(split: int) -> None:
    data = batches([3, 9, 2])
    whole, one, other = seen(data), seen(data[:split]), seen(data[split:])

    one.merge(other)

    assert torch.equal(one.amax, whole.amax)
    torch.testing.assert_close(one.gram(), whole.gram(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.abs_sum, whole.abs_sum)
    assert (one.num_tokens, one.num_batches) == (whole.num_tokens, whole.num_batches)


def test_few_tokens_are_kept_instead_of_their_gram() -> None:
    found = seen(batches([1, 4]))

    assert found._gram is None
    assert torch.linalg.matrix_rank(found.gram()) == 5


@pytest.mark.parametrize(
    ("tokens", "is_kept"), [([1, 5], True), ([1, 6], False), ([2, 1], False), ([9, 2], False)], ids=str
)
def test_the_product_is_that_of_all_tokens(tokens: list[int], is_kept: bool) -> None:
    found = seen(batches(tokens)).product()

    x = torch.cat(batches(tokens), 1)[0]
    torch.testing.assert_close(found.errors(torch.eye(6)), x.square().sum(0))
    assert (found.gram is None) == is_kept, "tokens where they are few, and no few such batches are more"


@pytest.mark.parametrize("channels", [256, 300, 700])
def test_the_gram_of_many_channels_is_symmetric_and_grows_on(channels: int) -> None:
    data = batches([channels, 30, 50], channels)
    found = seen(data[:2])
    first = found.gram().clone()  # looked at in between
    found.add(data[2])

    for gram, parts in ((first, data[:2]), (found.gram(), data)):
        x = torch.cat(parts, 1)[0].double()
        assert torch.equal(gram, gram.T)
        torch.testing.assert_close(gram, (x.T @ x).float(), rtol=1e-4, atol=1e-3)


def test_shards_of_many_channels_merge_whole() -> None:
    data = batches([310, 20, 300, 15], 300)
    one, other = seen(data[:2]), seen(data[2:])

    one.merge(other)

    x = torch.cat(data, 1)[0].double()
    torch.testing.assert_close(one.gram(), (x.T @ x).float(), rtol=1e-4, atol=1e-3)


def test_the_product_of_merged_shards_has_the_tokens_of_both() -> None:
    one, other = seen(batches([2])), seen(batches([40]))

    one.merge(other)

    x = torch.cat([batches([2])[0], batches([40])[0]], 1)[0]
    torch.testing.assert_close(one.product().errors(torch.eye(6)), x.square().sum(0))


def test_held_tokens_are_spread_over_all_that_were_seen() -> None:
    rows = torch.arange(100.0)[:, None]
    found = seen([rows[:7], rows[7:50], rows[50:]])

    held = found.held.tokens()[:, 0]
    assert len(held) <= 8
    assert torch.equal(held, torch.arange(0.0, 100.0, float(held[1])))


def test_an_empty_batch_says_nothing() -> None:
    found = seen([torch.empty(0, 4), torch.ones(2, 4)])

    assert (found.num_tokens, found.num_batches) == (2, 1)


def test_kept_tokens_are_copies() -> None:
    x = torch.ones(2, 6)
    found = seen([x])

    x.mul_(2)  # as a layer that works in place would

    assert torch.equal(found.gram(), torch.full((6, 6), 2.0))


def test_what_grows_out_of_kept_tokens_leaves_these_alone() -> None:
    first, second, third = batches([1, 1, 1])
    whole = seen([first])
    narrowed = whole.narrowed(EVERYTHING, torch.device("cpu"))

    whole.add(second)
    narrowed.add(third)

    for found, other in ((whole, second), (narrowed, third)):
        x = torch.cat([first[0], other[0]])
        assert torch.equal(torch.cat(list(found.product().tokens)), x)
        torch.testing.assert_close(found.gram(), x.T @ x)
