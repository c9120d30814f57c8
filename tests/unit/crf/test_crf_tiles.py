"""Laws of the block-sparse filter's tiles, and of the pairs of them that it keeps.

Not here: its sums (test_crf_block_sparse.py).
"""

from importlib import import_module

import pytest
import torch

from jointseg.crf.filters import tile_pairs
from jointseg.crf.filters.block_sparse import BlockSparseFilter
from jointseg.crf.filters.tile_pairs import choose_pairs, cut_into_items, row_sums_over
from jointseg.crf.filters.tiles import sort_into_tiles
from tests.block_sparse import DEVICE, ROUNDING, built, draw, features_of, plain_matrix, share_of_pairs, wide


def test_pairs_are_skipped_and_more_at_a_higher_tolerance():
    assert share_of_pairs(built(1e-3)) < share_of_pairs(built(1e-6)) < 0.6


def test_every_pair_is_kept_both_ways():
    pairs = built(1e-3)._pairs
    kept = {(row, column) for row, first, stop, _ in pairs.items_I4.tolist() for column in pairs.columns_E[first:stop].tolist()}
    assert len(kept) == len(pairs.columns_E)
    assert kept == {(column, row) for row, column in kept}


def test_long_rows_are_cut_and_their_parts_added():
    features = features_of(wide().values_BPF[:1, :400] / 20)
    whole = BlockSparseFilter(features, tolerance=1e-6)
    cut = BlockSparseFilter(features, tolerance=1e-6, pairs_per_item=2)
    values = draw(1, 20, 400, seed=6)
    assert whole._pairs.num_slots == 0
    assert cut._pairs.num_slots > len(cut._tiles.pixels_GT)
    lengths = cut._pairs.items_I4[:, 2] - cut._pairs.items_I4[:, 1]
    assert lengths.max() <= 2
    assert (lengths.diff() <= 0).all()
    torch.testing.assert_close(cut.apply(values), whole.apply(values), rtol=0, atol=1e-5 * 400)
    assert torch.equal(cut.apply(values), cut.apply(values))


@pytest.mark.parametrize("num_tiles", [1, 2, 5, 8, 13])
def test_every_valid_pixel_is_in_one_tile_and_tiles_are_full(num_tiles):
    P = 16 * num_tiles + 20
    valid = torch.zeros(2, P, dtype=torch.bool)
    valid[0, torch.randperm(P, generator=torch.Generator().manual_seed(0))[: 16 * num_tiles - 3]] = True
    valid[1, 7:20] = True
    tiles = sort_into_tiles(features_of(torch.rand(2, P, 4, generator=torch.Generator().manual_seed(1)), valid), 16)
    for b, pixels in enumerate(tiles.pixels_GT.cpu().view(2, num_tiles, 16)):
        assert sorted(pixels[pixels >= 0].tolist()) == valid[b].nonzero().squeeze(1).tolist()
        assert ((pixels >= 0).flatten().int().diff() <= 0).all()


@pytest.mark.parametrize(("num_tiles", "F"), [(1, 2), (2, 1), (7, 3), (12, 5)])
def test_each_node_is_halved_across_its_widest_feature(num_tiles, F):
    """Two images, of values that are often equal, with places behind that hold no pixel; by a plain sort of each node."""
    points = 4 * torch.randn(2, num_tiles * 16, F, generator=torch.Generator().manual_seed(5))
    points = points.round() + 0.25
    points[1, -20:] = torch.inf
    order, boxes = import_module("jointseg.crf.filters.kd_tree").kd_order(points.view(-1, F).to(DEVICE), 16, 2)

    def sorted_across(places, count, left):
        if count == 1 or left == 0:
            return [places]
        values = points.view(-1, F)[places]
        there = values[values.isfinite().all(1)]
        widest = int((there.amax(0) - there.amin(0)).argmax()) if len(there) else 0
        places = places[values[:, widest].argsort(stable=True)]
        half = (count + 1) // 2
        parts = (places[: 16 * half], half), (places[16 * half :], count - half)
        return [tile for part, size in parts for tile in sorted_across(part, size, left - 1)]

    every = torch.arange(2 * num_tiles * 16).view(2, -1)
    tiles = [tile for places in every for tile in sorted_across(places, num_tiles, (num_tiles - 1).bit_length())]
    # A node of one tile is sorted with the others of its level.
    assert [sorted(tile.tolist()) for tile in tiles] == [sorted(tile) for tile in order.view(-1, 16).tolist()]
    for tile, (low, high) in zip(tiles, boxes.cpu(), strict=True):
        there = points.view(-1, F)[tile]
        there = there[there.isfinite().all(1)]
        assert low.tolist() == (there.amin(0).tolist() if len(there) else [torch.inf] * F)
        assert high.tolist() == (there.amax(0).tolist() if len(there) else [-torch.inf] * F)


def test_distances_are_expanded_where_features_are_small_enough():
    """64 sqrt(2 ln 2) = 75 bandwidths from the middle are the most."""
    for reach, expanded in ((74.0, True), (77.0, False)):
        features = features_of(torch.linspace(-reach, reach, 500)[None, :, None] + 1000)
        block, values = BlockSparseFilter(features), draw(1, 2, 500, seed=15)
        assert block._tiles.compared_GRT.shape[1] == (32 if expanded else 1)
        error = (block.apply(values).double() - values.double() @ plain_matrix(features)).abs()
        assert (error <= (1e-3 + ROUNDING[1e-3]) * plain_matrix(features).sum(-1)).all()
    assert BlockSparseFilter(features_of(torch.zeros(1, 70, 2)), tolerance=1e-4)._tiles.compared_GRT.shape[1] == 2
    assert BlockSparseFilter(features_of(torch.zeros(1, 70, 17)))._tiles.compared_GRT.shape[1] == 17, "too many features"


def test_pairs_are_the_same_however_many_boxes_are_compared_at_once(monkeypatch):
    """Those of two images, each hearing its own tiles alone, and all of them both ways."""
    reach = torch.tensor([6.0, 40.0])[:, None, None]
    features = features_of(torch.rand(2, 200, 2, generator=torch.Generator().manual_seed(4)) * reach)
    tiles = sort_into_tiles(features, 16)
    found = choose_pairs(tiles, 1e-2, precision="float16", pairs_per_item=8)
    for at_once in (1, 40, 10**6):
        monkeypatch.setattr(tile_pairs, "_MAX_LEVELS_AT_ONCE", at_once)
        again = choose_pairs(tiles, 1e-2, precision="float16", pairs_per_item=8)
        assert [each.tolist() for each in again] == [each.tolist() for each in found], at_once
    pairs = set(zip(*(each.tolist() for each in found), strict=True))
    num_tiles = len(tiles.pixels_GT) // 2
    assert pairs == {(column, row) for row, column in pairs}
    assert all(row // num_tiles == column // num_tiles for row, column in pairs)
    assert 2 * num_tiles < len(pairs) < 2 * num_tiles**2


COUNTS = {"none": [0, 0, 0], "uneven": [0, 7, 1, 0, 16, 15, 3, 40, 0], "one": [9], "even": [8] * 6}


@pytest.mark.parametrize("longest_first", [True, False])
@pytest.mark.parametrize("most", [1, 3, 8, 100])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_rows_are_cut_into_equal_pieces_and_each_slot_is_one_of_its_row(monkeypatch, counts, most, longest_first):
    monkeypatch.setattr(tile_pairs, "_MAX_SLOTS", 30)
    G, E = len(counts), sum(counts)
    rows = torch.arange(G, device=DEVICE).repeat_interleave(torch.tensor(counts, device=DEVICE))
    pairs = cut_into_items(rows, torch.arange(E, device=DEVICE), G, most, longest_first=longest_first)
    items, slots, length = pairs.items_I4.tolist(), pairs.slots_G.tolist(), max(most, -(-E // 30))
    for row, count in enumerate(counts):
        own = sorted((first, stop) for at, first, stop, _ in items if at == row and stop > first)
        assert [e for first, stop in own for e in range(first, stop)] == [e for e in range(E) if rows[e] == row]
        assert len(own) == -(-count // length), "no more pieces than needed"
        sizes = [stop - first for first, stop in own]
        assert len(set(sizes[:-1])) <= 1
        assert not sizes or sizes[-1] <= sizes[0] <= length
    assert sorted(slot for *_, slot in items if slot >= 0) == list(range(pairs.num_slots)), "each is written once"
    assert all(slots[row] <= slot < slots[row + 1] for row, *_, slot in items if slot >= 0)
    assert (slots[0], slots[-1], slots) == (0, pairs.num_slots, sorted(slots))
    assert pairs.num_slots <= 30
    begun = [row for row, *_, slot in items if slot < 0]
    if longest_first:
        assert all(stop > first for _, first, stop, _ in items)
        assert sorted(begun) == [row for row, count in enumerate(counts) if count]
    else:
        assert begun == list(range(G))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "tf32x3"])
def test_sums_are_the_same_bits_whether_or_not_the_longest_come_first(precision):
    tiles = sort_into_tiles(features_of(torch.rand(1, 300, 2, generator=torch.Generator().manual_seed(3))), 16)
    G = len(tiles.pixels_GT)
    everyone = torch.arange(G, device=DEVICE)
    rows, columns = everyone.repeat_interleave(G), everyone.repeat(G)
    whole, cut, ordered = (
        row_sums_over(tiles, cut_into_items(rows, columns, G, most, longest_first=longest), precision)
        for most, longest in ((G, False), (3, False), (3, True))
    )
    assert torch.equal(cut, ordered)
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=0)
