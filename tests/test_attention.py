"""The probe of FlexAttention: it passes rounding and refuses every broken kernel.

The compiled kernel is played by the plain formula, which rounds where a GPU's kernel does; on the
pretended GPU (tests/rehearsal) the real one is traced.
"""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import FAMILIES
from torch.nn.attention.flex_attention import create_mask

from dandap.errors import InputError
from dandap.model.load import load_base
from dandap.model.shapes import named_config
from dandap.recipe import Recipe
from dandap.tree import attention
from dandap.tree.attention import (
    OWN_CHOICE,
    SMALL_TILES,
    probe,
    tiles_to_try,
    use_tree_attention,
    why_no_flex,
)
from dandap.tree.masks import BLOCK, tree_masks
from dandap.tree.token_tree import collate, grow

CPU = torch.device("cpu")


def plain_kernel(query, key, value, score_mod, block_mask, scale, enable_gqa, kernel_options):
    """Attention by the formula: scores in float32, weights rounded to the inputs' dtype."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query.float() @ key.float().transpose(-1, -2) * scale
    if score_mod:
        scores = score_mod(scores, 0, 0, 0, 0)
    rows, length = query.shape[0], query.shape[2]
    sees = create_mask(block_mask.mask_mod, rows, 1, length, length, device=query.device)
    weights = scores.masked_fill(~sees, -torch.inf).softmax(-1).to(query.dtype)
    return (weights.float() @ value.float()).to(query.dtype)


@pytest.fixture
def kernel(monkeypatch):
    """Return a setter: the function that stands in for the compiled kernel."""

    def use(function):
        monkeypatch.setattr(attention, "_compiled", lambda: function)

    use(plain_kernel)
    return use


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("name", ["EEVE-10.8B", "Gemma-2-9B", "tiny-llama", "tiny-qwen3"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_passes(kernel, name, dtype):
    probe(named_config(name), CPU, dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_take_blocks(kernel, bases, family):
    """Every architecture hands the blocks on to its layers, and its own scaling and soft cap."""
    model = load_base(Recipe(model=str(bases / family), quantization="none"), CPU)
    questions = [([*range(9, 80), q, q + 1], [1, q]) for q in range(3, 7)]
    batch = collate([grow(questions)], pad_id=0, multiple_of=BLOCK)
    use_tree_attention(model)

    def logits(flex):
        return model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=tree_masks(model.config, batch, torch.float32, flex),
            use_cache=False,
        ).logits

    is_token = batch["input_ids"] != 0
    blocks, dense = (logits(flex)[is_token] for flex in (True, False))
    assert dense.std() > 0.1
    torch.testing.assert_close(blocks, dense, rtol=1e-4, atol=1e-4)


def other(**changed):
    """Return a kernel that is given other arguments than it should be."""

    def wrong(query, key, value, score_mod, block_mask, **others):
        given = {"score_mod": score_mod, "block_mask": block_mask, **others}
        for name, change in changed.items():
            given[name] = change(given[name])
        return plain_kernel(query, key, value, **given)

    return wrong


def mask_of(rule):
    """Return a change of a block mask's rule; `rule` gets the old one and its arguments."""

    def change(mask):
        def mask_mod(row, head, query, key):
            return rule(mask.mask_mod, row, head, query, key)

        return SimpleNamespace(mask_mod=mask_mod)

    return change


def causal(old, row, head, query, key):
    return key <= query  # branches see each other


def without_window(old, row, head, query, key):
    # The rule of a window asks for positions; without one it is that of the tree alone.
    return old.__closure__ and old_without_window(old)(row, head, query, key)


def old_without_window(sees):
    cells = dict(zip(sees.__code__.co_freevars, sees.__closure__, strict=True))
    end = cells["subtree_end"].cell_contents

    def tree_alone(row, head, query, key):
        return (key <= query) & (query <= end[row, key])

    return tree_alone


def one_key_less(old, row, head, query, key):
    return old(row, head, query, key) & (key != 5)


BROKEN = {
    "branches see each other": ("EEVE-10.8B", {"block_mask": mask_of(causal)}),
    "branches see each other, Gemma": ("Gemma-2-9B", {"block_mask": mask_of(causal)}),
    "the window is lost": ("Gemma-2-9B", {"block_mask": mask_of(without_window)}),
    "the soft cap is lost": ("Gemma-2-9B", {"score_mod": lambda cap: None}),
    "a key is lost": ("EEVE-10.8B", {"block_mask": mask_of(one_key_less)}),
    "another scale": ("EEVE-10.8B", {"scale": lambda scale: scale * 1.1}),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_a_broken_kernel_fails(kernel, case, dtype):
    name, changed = BROKEN[case]
    kernel(other(**changed))
    with pytest.raises(AssertionError, match="of its norm"):
        probe(named_config(name), CPU, dtype)


def test_numbers_that_are_none_fail(kernel):
    kernel(lambda *tensors, **others: plain_kernel(*tensors, **others) * torch.nan)
    with pytest.raises(AssertionError, match="is off by nan"):
        probe(named_config("tiny-llama"), CPU, torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "dtype", "shared", "tiles"),
    [
        ("EEVE-10.8B", torch.bfloat16, 101_376, [OWN_CHOICE, SMALL_TILES]),  # RTX 3090
        ("Gemma-2-9B", torch.bfloat16, 101_376, [SMALL_TILES]),
        ("Gemma-2-9B", torch.float16, 166_912, [OWN_CHOICE, SMALL_TILES]),  # A100
        ("EEVE-10.8B", torch.float32, 101_376, [SMALL_TILES]),
    ],
)
def test_tiles_fit_the_gpus_shared_memory(monkeypatch, name, dtype, shared, tiles):
    known = SimpleNamespace(shared_memory_per_block_optin=shared)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: known)
    assert tiles_to_try(named_config(name), torch.device("cuda"), dtype) == tiles


@pytest.fixture
def a100(monkeypatch):
    known = SimpleNamespace(shared_memory_per_block_optin=166_912)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: known)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(attention, "_chosen_tiles", {})
    real = attention.probe
    monkeypatch.setattr(attention, "probe", lambda config, device, dtype: real(config, CPU, dtype))


def needs_small_tiles(*tensors, kernel_options, **others):
    if kernel_options != SMALL_TILES:
        raise RuntimeError("out of resource: shared memory\nRequired: 152576")
    return plain_kernel(*tensors, **others, kernel_options=None)


def test_the_probe_is_tried_again_with_small_tiles(kernel, a100):
    """And what worked is what training uses."""
    config, cuda = named_config("tiny-llama"), torch.device("cuda")
    kernel(needs_small_tiles)
    assert why_no_flex(Recipe(), config, cuda, torch.bfloat16) is None
    assert attention._chosen_tiles == {(32, torch.bfloat16): SMALL_TILES}
    kernel(plain_kernel)
    assert why_no_flex(Recipe(), config, cuda, torch.bfloat16) is None
    assert attention._chosen_tiles == {(32, torch.bfloat16): OWN_CHOICE}


def test_a_gpu_where_nothing_compiles_says_why(kernel, a100):
    def fails(*tensors, **others):
        raise RuntimeError("no valid triton configs\nand much more")

    config, cuda = named_config("tiny-llama"), torch.device("cuda")
    kernel(fails)
    reason = why_no_flex(Recipe(), config, cuda, torch.bfloat16)
    assert reason == "flex failed its probe: RuntimeError: no valid triton configs"
    with pytest.raises(InputError, match="attention=flex cannot be used"):
        why_no_flex(Recipe(attention="flex"), config, cuda, torch.bfloat16)
