from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest

from rarefy.consume.order import Deck, epoch_order, share, share_size, shuffled

GOLDEN = [10, 2, 3, 7, 8, 1, 5, 11, 9, 6, 4, 0]


def test_an_order_is_a_permutation_that_seed_and_epoch_change() -> None:
    orders = {(seed, epoch): epoch_order(50, seed, epoch, True).tolist() for seed in range(3) for epoch in range(3)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 9
    assert epoch_order(50, 1, 2, True).tolist() == orders[1, 2]
    assert epoch_order(4, 1, 2, False).tolist() == [0, 1, 2, 3]


def test_an_order_is_the_same_on_every_machine_and_in_every_version() -> None:
    assert shuffled(12, "epoch", 7, 3).tolist() == GOLDEN


def test_every_place_comes_first_equally_often() -> None:
    first = Counter(int(shuffled(8, "test", epoch)[0]) for epoch in range(4000))
    expected = 4000 / 8
    assert sum((first[place] - expected) ** 2 / expected for place in range(8)) < 24.3  # chi squared, p = 0.001


@pytest.mark.parametrize("remainder", ["drop", "pad", "keep"])
def test_ranks_share_an_epoch_as_a_brute_force_deal_does(remainder: str) -> None:
    for count, ranks, start in product((1, 2, 7, 12, 13), (1, 2, 3, 5), (0, 1, 6)):
        if start > count:
            continue
        order = shuffled(count, "test", count)
        hands: list[list[int]] = [[] for _ in range(ranks)]
        left = order[start:].tolist()
        while left and (len(left) >= ranks or remainder != "drop"):
            for hand in hands:
                if left:
                    hand.append(left.pop(0))
        longest = max(map(len, hands))
        if remainder == "pad":
            again = (order.tolist() * ranks).__iter__()
            for hand in hands:
                hand += [next(again) for _ in range(longest - len(hand))]
        parts = [share(order, start, rank, ranks, remainder).tolist() for rank in range(ranks)]
        assert parts == hands
        assert [share_size(count - start, rank, ranks, remainder) for rank in range(ranks)] == list(map(len, parts))


@pytest.mark.parametrize(("members", "count"), [(10, 3), (10, 5), (10, 10), (10, 0), (7, 4), (3, 10), (1, 5), (4, 8)])
def test_a_deck_deals_exact_counts_and_everyone_has_a_turn(members: int, count: int) -> None:
    names = np.arange(100, 100 + members)
    deck, total = Deck(names, count, "seed"), Counter[int]()
    deals = max(1, members // count) if count else 1
    for epoch in range(2 * deals):
        dealt = Counter(deck.card(epoch, number) for number in range(len(deck)))
        assert dealt.total() == count and set(dealt) <= set(names.tolist())
        assert all(n in (count // members, -(-count // members)) for n in dealt.values())
        total += dealt
    if count and members % count == 0:
        assert set(total.values()) == {2}


def test_a_deck_needs_no_memory_of_earlier_epochs_and_is_shuffled() -> None:
    deals = {epoch: [Deck(np.arange(9), 3, 1).card(epoch, number) for number in range(3)] for epoch in (5, 0, 4, 3)}
    deck = Deck(np.arange(9), 3, 1)
    assert {epoch: [deck.card(epoch, number) for number in range(3)] for epoch in deals} == deals
    assert sorted(deals[3] + deals[4] + deals[5]) == list(range(9)) != deals[3] + deals[4] + deals[5]
    other = Deck(np.arange(9), 3, 2)
    assert [other.card(3, number) for number in range(3)] != deals[3]
