"""Test that the probe of FlexAttention accepts rounding and rejects broken kernels.

A formula that rounds like a GPU kernel replaces the compiled one. The fake GPU (tests/rehearsal)
traces the real one.
"""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import FAMILIES
from torch.nn.attention.flex_attention import create_mask

from benchmarks.material import named_config
from dandap.errors import InputError
from dandap.model.load import load_base
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

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FLOAT32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
LLAMA = named_config("tiny-llama")


def formula(query, key, value, score_mod, block_mask, scale, enable_gqa, kernel_options):
    """Compute attention with float32 scores, and weights rounded to the dtype of the inputs."""
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
def use_kernel(monkeypatch):
    """Replace the compiled kernel by `formula`; return a function that sets another one."""

    def use(function):
        monkeypatch.setattr(attention, "_compiled", lambda: function)

    use(formula)
    return use


@pytest.mark.parametrize("name", ["EEVE-10.8B", "Gemma-2-9B", "tiny-llama", "tiny-qwen3"])
@pytest.mark.parametrize("dtype", [FLOAT32, BF16, FP16], ids=str)
def test_rounding_passes(use_kernel, name, dtype):
    probe(named_config(name), CPU, dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_accept_blocks(use_kernel, bases, family):
    """Each architecture passes block masks, its scaling and its soft cap to the attention."""
    model = load_base(Recipe(model=str(bases / family), quantization="none"), CPU)
    questions = [([*range(9, 80), q, q + 1], [1, q]) for q in range(3, 7)]
    batch = collate([grow(questions)], pad_id=0, multiple_of=BLOCK)
    ids, positions = batch["input_ids"], batch["position_ids"]
    use_tree_attention(model)
    logits = {}
    for flex in (True, False):
        mask = tree_masks(model.config, batch, FLOAT32, flex)
        out = model(ids, position_ids=positions, attention_mask=mask, use_cache=False)
        logits[flex] = out.logits[ids != 0]
    assert logits[False].std() > 0.1
    torch.testing.assert_close(logits[True], logits[False], rtol=1e-4, atol=1e-4)


def leaking(mask):
    return SimpleNamespace(mask_mod=lambda b, h, q, k: k <= q)  # torch counts the arguments


def without_window(mask):
    rule = mask.mask_mod
    cells = dict(zip(rule.__code__.co_freevars, rule.__closure__, strict=True))
    end = cells["subtree_end"].cell_contents
    return SimpleNamespace(mask_mod=lambda b, h, q, k: (k <= q) & (q <= end[b, k]))


BROKEN = {
    "branches see each other": ("EEVE-10.8B", "block_mask", leaking),
    "no window": ("Gemma-2-9B", "block_mask", without_window),
    "no soft cap": ("Gemma-2-9B", "score_mod", lambda cap: None),
    "another scale": ("EEVE-10.8B", "scale", lambda scale: scale * 1.1),
    "nan": ("EEVE-10.8B", "scale", lambda scale: torch.nan),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_a_broken_kernel_fails(use_kernel, case, dtype):
    name, argument, change = BROKEN[case]

    def broken(query, key, value, score_mod, block_mask, **others):
        given = {"score_mod": score_mod, "block_mask": block_mask, **others}
        return formula(query, key, value, **(given | {argument: change(given[argument])}))

    use_kernel(broken)
    with pytest.raises(AssertionError, match="of its norm|off by nan"):
        probe(named_config(name), CPU, dtype)


@pytest.fixture
def gpu(monkeypatch):
    """Probe on the CPU as if on an A100; return the chosen tiles and the GPU properties."""
    chosen, probe = {}, attention.probe
    properties = SimpleNamespace(shared_memory_per_block_optin=166_912)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(attention, "_chosen_tiles", chosen)
    monkeypatch.setattr(attention, "probe", lambda config, device, dtype: probe(config, CPU, dtype))
    return chosen, properties


def test_tiles_fit_the_gpus_shared_memory(gpu):
    for name, dtype, size, tiles in (
        ("EEVE-10.8B", BF16, 101_376, [OWN_CHOICE, SMALL_TILES]),  # RTX 3090
        ("Gemma-2-9B", BF16, 101_376, [SMALL_TILES]),
        ("Gemma-2-9B", FP16, 166_912, [OWN_CHOICE, SMALL_TILES]),  # A100
        ("EEVE-10.8B", FLOAT32, 101_376, [SMALL_TILES]),
    ):
        gpu[1].shared_memory_per_block_optin = size
        assert tiles_to_try(named_config(name), CUDA, dtype) == tiles


def test_the_probe_is_repeated_with_small_tiles(use_kernel, gpu):
    """Training uses the tiles that worked."""

    def needs_small_tiles(*tensors, kernel_options, **given):
        if kernel_options != SMALL_TILES:
            raise RuntimeError("out of resource: shared memory\nRequired: 152576")
        return formula(*tensors, **given, kernel_options=None)

    for kernel, tiles in ((needs_small_tiles, SMALL_TILES), (formula, OWN_CHOICE)):
        use_kernel(kernel)
        assert why_no_flex(Recipe(), LLAMA, CUDA, BF16) is None
        assert gpu[0] == {(32, BF16): tiles}


def test_a_gpu_where_nothing_compiles(use_kernel, gpu):
    def fails(*tensors, **given):
        raise RuntimeError("no valid triton configs\nand much more")

    use_kernel(fails)
    reason = why_no_flex(Recipe(), LLAMA, CUDA, BF16)
    assert reason == "flex failed its probe: RuntimeError: no valid triton configs"
    with pytest.raises(InputError, match="attention=flex is not available"):
        why_no_flex(Recipe(attention="flex"), LLAMA, CUDA, BF16)
