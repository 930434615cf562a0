"""Test the tree: a literal one to read, and properties on trees grown at random.

Masks are held against the plain definition.
"""

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
ids = st.lists(st.integers(0, 3), max_size=12)
examples = st.lists(st.tuples(ids.filter(len), ids), min_size=1, max_size=12)


def test_a_tree_small_enough_to_read():
    """An article 7 8 9, two questions, the first with two answers that share their first token."""
    tree = grow(
        [([7, 8, 9, 1, 2], [5, 6, 0]), ([7, 8, 9, 3], [4, 0]), ([7, 8, 9, 1, 2], [5, 4, 0])]
    )
    #                           article  | question 1 | answers | question 2 | answer
    assert tree.input_ids == [7, 8, 9, 1, 2, 5, 6, 4, 3, 4]
    assert tree.position_ids == [0, 1, 2, 3, 4, 5, 6, 6, 3, 4]
    assert tree.subtree_end == [9, 9, 9, 7, 7, 7, 6, 7, 9, 9]
    assert tree.prompt_end == [4, 8, 4]
    assert tree.targets == [(4, 5), (5, 6), (6, 0), (8, 4), (9, 0), (4, 5), (5, 4), (7, 0)]


def test_a_batch_small_enough_to_read():
    """There are two rows; a padding token is its own end.

    A branch point predicts two tokens from one position.
    """
    batch = collate([grow([([7], [1, 0]), ([7], [2, 0])]), grow([([8], [3])])], pad_id=9)
    assert batch["input_ids"].tolist() == [[7, 1, 2], [8, 9, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 1], [0, 0, 0]]
    assert batch["subtree_end"].tolist() == [[2, 1, 2], [0, 1, 2]]
    assert batch["predicts"].tolist() == [0, 1, 2, 3]
    assert batch["times"].tolist() == [1] * 5
    assert batch["predictor"].tolist() == [0, 1, 0, 2, 3]
    assert batch["target_ids"].tolist() == [1, 0, 2, 0, 3]


def test_a_mask_small_enough_to_read():
    batch = collate([grow([([7], [1, 0]), ([7], [2, 0])]), grow([([8], [3])])], pad_id=9)
    mask = tree_masks(LLAMA, batch, torch.float32, flex=False)
    assert mask.shape == (2, 1, 3, 3)
    assert (mask == 0).int()[:, 0].tolist() == [
        [[1, 0, 0], [1, 1, 0], [1, 0, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    ]
    assert mask.min() == torch.finfo(torch.float32).min


def test_questions_first_share_less():
    article, one, two = [1, 2, 3, 4], [5], [6]
    assert len(grow([(article + one, [9]), (article + two, [9])])) == 6
    assert len(grow([(one + article, [9]), (two + article, [9])])) == 10


def path_to(tree, index):
    """Tokens of a node's ancestors and itself, by the tree's own rule of who sees whom."""
    return [tree.input_ids[key] for key in range(index + 1) if index <= tree.subtree_end[key]]


@given(examples)
def test_each_beginning_stands_once_and_every_target_sees_its_own_sequence(pairs):
    tree = grow(pairs)
    inputs = [prompt + answer[:-1] for prompt, answer in pairs]
    assert len(tree) == len({tuple(ids[: n + 1]) for ids in inputs for n in range(len(ids))})
    paths = [path_to(tree, index) for index in range(len(tree))]
    assert [len(path) - 1 for path in paths] == tree.position_ids
    expected = [
        (prompt + answer[:n], token) for prompt, answer in pairs for n, token in enumerate(answer)
    ]
    assert [(paths[index], token) for index, token in tree.targets] == expected
    assert [paths[index] for index in tree.prompt_end] == [prompt for prompt, _ in pairs]


@given(st.lists(examples, min_size=1, max_size=3), st.sampled_from([None, 1, 3]))
def test_masks_say_what_paths_say(groups, window):
    """A token sees its path, within the window, counted on positions: the dense mask says so."""
    trees = [grow(pairs) for pairs in groups]
    batch = collate(trees, pad_id=0)
    config = MistralConfig(sliding_window=window, num_hidden_layers=1)
    mask = tree_masks(config, batch, torch.float32, flex=False)[:, 0] == 0
    for row, tree in enumerate(trees):
        for query in range(mask.shape[1]):
            real = query < len(tree)
            keys = (
                [k for k in range(query + 1) if query <= tree.subtree_end[k]] if real else [query]
            )
            if window and real:
                keys = keys[-window:]
            assert mask[row, query].nonzero().flatten().tolist() == keys


@given(st.lists(examples, min_size=1, max_size=3), st.sampled_from([None, 4]), st.integers(1, 60))
def test_block_masks_equal_dense_masks(groups, window, stretch):
    """Long stems put branch points on both sides of a block's edge."""
    trees = [
        grow([(list(range(10, 10 + stretch * 5)) + prompt, answer) for prompt, answer in pairs])
        for pairs in groups
    ]
    batch = collate(trees, pad_id=0, multiple_of=BLOCK)
    config = MistralConfig(sliding_window=window, num_hidden_layers=1)
    dense = tree_masks(config, batch, torch.float32, flex=False)[:, 0] == 0
    block = tree_masks(config, batch, torch.float32, flex=True)
    rows, length = batch["input_ids"].shape
    assert torch.equal(
        create_mask(block.mask_mod, rows, None, length, length, device="cpu")[:, 0], dense
    )
    blocks = (
        dense.view(rows, length // BLOCK, BLOCK, length // BLOCK, BLOCK).transpose(2, 3).flatten(3)
    )
    kept = block.to_dense()[:, 0] > 0
    assert not (blocks.any(-1) & ~kept).any(), "a block that is seen was skipped"
    for row in range(rows):
        for query, (count, order) in enumerate(
            zip(block.full_kv_num_blocks[row, 0], block.full_kv_indices[row, 0], strict=True)
        ):
            assert blocks[row, query, order[:count].long()].all(), "a block called full is not"


def test_flex_attention_equals_the_dense_mask():
    """The forward on CPU; the backward needs a GPU (tests/test_gpu.py)."""
    stem = list(range(100, 300))
    batch = collate(
        [grow([([*stem, q, q + 1], [1, q, 2]) for q in range(10, 60)])], pad_id=0, multiple_of=BLOCK
    )
    length = batch["input_ids"].shape[1]
    query, key, value = torch.randn(3, 1, 4, length, 16, generator=torch.Generator().manual_seed(0))
    block = tree_masks(LLAMA, batch, torch.float32, flex=True)
    dense = tree_masks(LLAMA, batch, torch.float32, flex=False)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=dense)
    torch.testing.assert_close(
        flex_attention(query, key, value, block_mask=block), expected, rtol=1e-5, atol=1e-5
    )


def test_which_models_have_windows():
    assert sliding_windows(LLAMA) == {"": None}
    assert sliding_windows(GPT2Config()) == {"": None}
    assert sliding_windows(MistralConfig(sliding_window=64)) == {"": 64}
    assert sliding_windows(Qwen2Config(sliding_window=64, use_sliding_window=False)) == {"": None}
    assert sliding_windows(Gemma2Config(sliding_window=64)) == {
        "full_attention": None,
        "sliding_attention": 64,
    }
    with pytest.raises(
        InputError,
        match="layers of linear_attention, which cannot branch; in training use --read_once false",
    ):
        sliding_windows(Qwen3NextConfig())


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="got an empty prompt"):
        grow([([], [1])])


def test_deep_trees_need_no_recursion():
    """100,000 tokens deep is far beyond Python's recursion limit.

    Anything quadratic in it would not end.
    """
    tree = grow([([*range(100_000), -q], [1, 2]) for q in range(1, 5)])
    assert len(tree) == 100_008
