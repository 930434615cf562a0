"""Test token trees and their masks: one example to read, then properties of random trees."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask, flex_attention
from transformers import (
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from dandap.errors import InputError
from dandap.tree.masks import BLOCK, sliding_windows, tree_masks
from dandap.tree.token_tree import collate, grow

LLAMA = LlamaConfig(num_hidden_layers=1)
IDS = st.lists(st.integers(0, 3), max_size=12)
PAIRS = st.lists(st.tuples(IDS.filter(len), IDS), min_size=1, max_size=12)
GROUPS = st.lists(PAIRS, min_size=1, max_size=3)


def test_a_tree():
    """An article 7 8 9 with two questions. The answers to the first share their first token."""
    tree = grow(
        [([7, 8, 9, 1, 2], [5, 6, 0]), ([7, 8, 9, 3], [4, 0]), ([7, 8, 9, 1, 2], [5, 4, 0])]
    )
    #                           article  | question 1 | answers | question 2 | answer
    assert tree.input_ids == [7, 8, 9, 1, 2, 5, 6, 4, 3, 4]
    assert tree.position_ids == [0, 1, 2, 3, 4, 5, 6, 6, 3, 4]
    assert tree.subtree_end == [9, 9, 9, 7, 7, 7, 6, 7, 9, 9]
    assert tree.prompt_end == [4, 8, 4]
    assert tree.targets == [(4, 5), (5, 6), (6, 0), (8, 4), (9, 0), (4, 5), (5, 4), (7, 0)]


def test_a_batch_and_its_mask():
    """Two rows. A padding token sees only itself, and a branch point predicts two tokens."""
    batch = collate([grow([([7], [1, 0]), ([7], [2, 0])]), grow([([8], [3])])], pad_id=9)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[7, 1, 2], [8, 9, 9]],
        "position_ids": [[0, 1, 1], [0, 0, 0]],
        "subtree_end": [[2, 1, 2], [0, 1, 2]],
        "predicts": [0, 1, 2, 3],
        "predictor": [0, 1, 0, 2, 3],
        "target_ids": [1, 0, 2, 0, 3],
        "times": [1] * 5,
    }
    mask = tree_masks(LLAMA, batch, torch.float32, flex=False)
    assert mask.shape == (2, 1, 3, 3)
    assert (mask == 0).int()[:, 0].tolist() == [
        [[1, 0, 0], [1, 1, 0], [1, 0, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    ]
    assert mask.min() == torch.finfo(torch.float32).min


def seen_by(tree, query):
    """Return the indices that a token attends to, by definition."""
    return [key for key in range(query + 1) if query <= tree.subtree_end[key]]


@given(PAIRS)
def test_prefixes_occur_once_and_every_target_sees_its_own_sequence(pairs):
    tree = grow(pairs)
    inputs = [prompt + answer[:-1] for prompt, answer in pairs]
    assert len(tree) == len({tuple(ids[: n + 1]) for ids in inputs for n in range(len(ids))})
    paths = [[tree.input_ids[key] for key in seen_by(tree, index)] for index in range(len(tree))]
    assert [len(path) - 1 for path in paths] == tree.position_ids
    expected = [
        (prompt + answer[:n], token) for prompt, answer in pairs for n, token in enumerate(answer)
    ]
    assert [(paths[index], token) for index, token in tree.targets] == expected
    assert [paths[index] for index in tree.prompt_end] == [prompt for prompt, _ in pairs]


@given(GROUPS, st.sampled_from([None, 1, 3]))
def test_a_token_sees_its_path_within_the_window(groups, window):
    trees = [grow(pairs) for pairs in groups]
    config = MistralConfig(sliding_window=window, num_hidden_layers=1)
    mask = tree_masks(config, collate(trees, pad_id=0), torch.float32, flex=False)[:, 0] == 0
    for row, tree in enumerate(trees):
        for query in range(mask.shape[1]):
            keys = seen_by(tree, query) if query < len(tree) else [query]
            if window:
                keys = keys[-window:]
            assert mask[row, query].nonzero().flatten().tolist() == keys


@given(GROUPS, st.sampled_from([None, 4]), st.integers(1, 60))
def test_block_masks_equal_dense_masks(groups, window, stretch):
    """Long prefixes put branch points on both sides of a block boundary."""
    stem = list(range(10, 10 + stretch * 5))
    trees = [grow([(stem + prompt, answer) for prompt, answer in pairs]) for pairs in groups]
    batch = collate(trees, pad_id=0, multiple_of=BLOCK)
    config = MistralConfig(sliding_window=window, num_hidden_layers=1)
    dense = tree_masks(config, batch, torch.float32, flex=False)[:, 0] == 0
    block = tree_masks(config, batch, torch.float32, flex=True)
    rows, length = batch["input_ids"].shape
    same = create_mask(block.mask_mod, rows, None, length, length, device="cpu")[:, 0]
    assert torch.equal(same, dense)
    count = length // BLOCK
    blocks = dense.view(rows, count, BLOCK, count, BLOCK).transpose(2, 3).flatten(3)
    skipped = block.to_dense()[:, 0] == 0
    assert not (blocks.any(-1) & skipped).any()
    for row in range(rows):
        full = zip(block.full_kv_num_blocks[row, 0], block.full_kv_indices[row, 0], strict=True)
        for query, (number, order) in enumerate(full):
            assert blocks[row, query, order[:number].long()].all(), "not a full block"


def test_flex_attention_equals_the_dense_mask():
    """Only the forward: the backward needs a GPU (tests/test_gpu.py)."""
    stem = list(range(100, 300))
    tree = grow([([*stem, q, q + 1], [1, q, 2]) for q in range(10, 60)])
    batch = collate([tree], pad_id=0, multiple_of=BLOCK)
    length = batch["input_ids"].shape[1]
    query, key, value = torch.randn(3, 1, 4, length, 16, generator=torch.Generator().manual_seed(0))
    block, dense = (tree_masks(LLAMA, batch, torch.float32, flex) for flex in (True, False))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=dense)
    got = flex_attention(query, key, value, block_mask=block)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_sliding_windows():
    for config, windows in (
        (LLAMA, {"": None}),
        (GPT2Config(), {"": None}),
        (MistralConfig(sliding_window=64), {"": 64}),
        (Qwen2Config(sliding_window=64, use_sliding_window=False), {"": None}),
        (Gemma2Config(sliding_window=64), {"full_attention": None, "sliding_attention": 64}),
    ):
        assert sliding_windows(config) == windows
    with pytest.raises(InputError, match="qwen3_next has linear_attention layers"):
        sliding_windows(Qwen3NextConfig())


def test_deep_trees_take_linear_time_and_no_recursion():
    """Recursion would exceed Python's limit; quadratic time for 100,000 tokens takes too long."""
    tree = grow([([*range(100_000), -q], [1, 2]) for q in range(1, 5)])
    assert len(tree) == 100_008
