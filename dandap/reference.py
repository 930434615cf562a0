"""The plain paths: TRL's SFTTrainer with the loss on answers alone, and transformers' generate in length-sorted batches.

They read an article once per question. Faster paths are measured against them and proved equal to them.
"""

import math
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from dandap.checkpoints import CrashProof
from dandap.encoding import Example
from dandap.errors import InputError
from dandap.memory import Plan
from dandap.processes import process_count
from dandap.recipe import Recipe

T = TypeVar("T")


def make_trainer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    recipe: Recipe,
    plan: Plan,
    checkpoints: str,
    callbacks: list[TrainerCallback],
) -> SFTTrainer:
    """An SFTTrainer over encoded examples, the loss on their answer tokens, the adapter in float32."""
    longest = max(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
    questions, rest = divmod(recipe.questions_per_step, process_count())
    if rest:
        raise InputError(
            f"questions_per_step={recipe.questions_per_step} cannot be shared by {process_count()} processes with read_once "
            f"false; give a multiple of {process_count()}."
        )
    micro, accumulation = split_step(questions, plan.tokens_per_batch // longest)
    config = training_config(recipe, plan, checkpoints, len(examples), micro, accumulation)
    data = supervised(examples)
    with float32_adapters(model):
        trainer = PlainTrainer(model, config, train_dataset=data, processing_class=tokenizer, callbacks=callbacks)
    trainer.ids = {tuple(ids): example.row.id for ids, example in zip(data["input_ids"], examples, strict=True)}
    trainer.remove_callback(PrinterCallback)  # ours prints a line with fixed fields
    return trainer


class PlainTrainer(CrashProof, SFTTrainer):
    """TRL's SFTTrainer, crash-proof."""

    ids: dict[tuple[int, ...], str]  # token ids of an example -> its question's id
    rows: tuple[torch.Tensor, ...] = ()  # token ids of a step's examples

    def training_step(self, model, inputs, num_items_in_batch=None):
        """TRL's; the step's rows are remembered for an error's message."""
        self.rows = (*self.rows, *inputs["input_ids"])[-self.args.gradient_accumulation_steps * self._train_batch_size :]
        return super().training_step(model, inputs, num_items_in_batch)

    def questions_of_step(self) -> list[str]:
        """Rows may be padded on the right."""
        rows = [row.tolist() for row in self.rows]
        return [name for ids, name in self.ids.items() if any(row[: len(ids)] == list(ids) for row in rows)]


@contextmanager
def float32_adapters(model: PeftModel):
    """Keeps adapters as they are: SFTTrainer's constructor casts those of every 4-bit model to bf16."""
    adapters = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = adapters[name]


def supervised(examples: list[Example]) -> Dataset:
    """Prompts and answers with labels on the answers only."""
    return Dataset.from_list(
        [
            {
                "input_ids": example.prompt_ids + example.answer_ids,
                "labels": [-100] * len(example.prompt_ids) + example.answer_ids,
            }
            for example in examples
        ]
    )


def warmup_steps(recipe: Recipe, questions: int) -> int:
    """The recipe's share of all steps, or its count; at most a tenth of a short run, whose only step it might otherwise be."""
    steps = math.ceil(math.ceil(questions / recipe.questions_per_step) * recipe.epochs)
    if recipe.warmup_steps >= 1:
        return int(recipe.warmup_steps)
    return min(math.ceil(recipe.warmup_steps * steps), steps // 10)


def training_config(recipe: Recipe, plan: Plan, checkpoints: str, questions: int, micro: int, accumulation: int) -> SFTConfig:
    """The recipe in TRL's words for so many questions; a step is `accumulation` batches of `micro`."""
    on_gpu = plan.device.type == "cuda"
    config = SFTConfig(
        output_dir=checkpoints,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=warmup_steps(recipe, questions),
        optim=recipe.optim,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        neftune_noise_alpha=recipe.neftune_noise_alpha,
        activation_checkpointing=plan.gradient_checkpointing,
        bf16=on_gpu and plan.compute_dtype is torch.bfloat16,
        fp16=on_gpu and plan.compute_dtype is torch.float16,
        use_cpu=not on_gpu,
        ddp_find_unused_parameters=False,  # every adapter takes part in every step; the search costs a walk over the graph
        dataloader_pin_memory=on_gpu,
        seed=recipe.seed,
        data_seed=recipe.seed,
        save_steps=recipe.save_steps,
        save_total_limit=None,  # dandap/checkpoints.py knows which are valid
        logging_steps=1,  # each step's own loss, the same when a run was interrupted; fewer are printed
        logging_nan_inf_filter=False,  # otherwise a NaN is logged as a loss of 0.0
        disable_tqdm=True,
        report_to="none",
        max_length=None,  # the encoder trims articles; TRL would cut answers
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    # With several GPUs visible Trainer would wrap the model in DataParallel, which SFTTrainer refuses (Kaggle's two T4).
    config._n_gpu = min(config.n_gpu, 1)
    return config


def split_step(questions: int, most_rows: int) -> tuple[int, int]:
    """(rows per batch, batches) of a step: the largest batch that divides the step and fits."""
    micro = max((rows for rows in range(1, questions + 1) if questions % rows == 0 and rows <= most_rows), default=1)
    return micro, questions // micro


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded. A temperature of 0 takes the likeliest token; beams are for `generate` alone."""

    stop_ids: list[int]
    pad_id: int
    max_new_tokens: int
    min_new_tokens: int = 0  # an answer cannot stop before
    samples: int = 1
    temperature: float = 0.0
    seed: int = 42
    beams: int = 1
    repetition_penalty: float = 1.0  # 1: none


@dataclass(frozen=True)
class Answer:
    """What the model said: ids without padding, the stop token included if it came."""

    token_ids: list[int]
    stopped: bool  # False: cut at max_new_tokens
    log_probability: float  # of a token, on average; the model's own, at temperature 1

    @property
    def said(self) -> list[int]:
        """The ids without the stop token, which is no part of the text whether or not the tokenizer calls it special."""
        return self.token_ids[:-1] if self.stopped else self.token_ids


def computing(model: PreTrainedModel | PeftModel) -> torch.autocast:
    """The precision answers are computed in: the base's, adapters and all."""
    device = next(model.parameters()).device
    return torch.autocast(device.type, dtype=model.dtype, enabled=device.type == "cuda")


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel | PeftModel,
    prompts: list[list[int]],
    decoding: Decoding,
    tokens_per_batch: int,
    advance: Callable[[int], None] = lambda count: None,
    done: Container[int] = (),
) -> Iterator[tuple[int, Answer]]:
    """The likeliest answers as (index of the prompt, Answer), longest prompts first so that memory peaks at the start.

    Prompts that are `done` are left out; the others keep their batches.
    """
    model.eval()
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    while order:
        tokens = decoding.beams * (len(prompts[order[0]]) + decoding.max_new_tokens)
        batch = order[: max(1, tokens_per_batch // tokens)]
        if all(index in done for index in batch):
            order = order[len(batch) :]
            advance(len(batch))
            continue
        answers = unless_out_of_memory(partial(_generate, model, [prompts[i] for i in batch], decoding))
        if answers is None:
            if len(batch) == 1:
                raise InputError(out_of_memory(f"one question of {len(prompts[batch[0]])} tokens, {decoding.beams} beams"))
            tokens_per_batch = halved(len(batch) * tokens)
            continue
        order = order[len(batch) :]
        yield from ((index, answer) for index, answer in zip(batch, answers, strict=True) if index not in done)
        advance(len(batch))


def unless_out_of_memory(work: Callable[[], T]) -> T | None:
    """What the work returns, or None; by then the failed attempt's tensors are gone."""
    try:
        return work()
    except torch.OutOfMemoryError:
        pass  # its traceback holds the tensors until here
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def halved(tokens: int) -> int:
    """Of what did not fit, told."""
    print(f"out of memory with {tokens} tokens in a batch: going on with {tokens // 2}")
    return tokens // 2


def out_of_memory(what: str) -> str:
    """The message for what cannot be made smaller."""
    way_out = "Free the GPU (nvidia-smi shows who uses it), or lower max_length, samples or beams."
    return f"out of memory while answering {what}. {way_out}"


@contextmanager
def _no_generation_defaults(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """generate fills what it is not told from the model's generation_config: sampling, penalties, forbidden words."""
    owners = {model, model.get_base_model()} if isinstance(model, PeftModel) else {model}
    before = {owner: owner.generation_config for owner in owners}
    for owner in owners:
        owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for owner, config in before.items():
            owner.generation_config = config


def penalized(logits: torch.Tensor, seen: list[list[int]], penalty: float) -> torch.Tensor:
    """Logits (rows, vocab) lowered for the tokens that each row has seen, prompt included (Keskar et al., 2019)."""
    lowered = logits.clone()
    for row, ids in enumerate(seen):
        at = torch.tensor(sorted(set(ids)), device=logits.device)
        values = logits[row, at]
        lowered[row, at] = torch.where(values < 0, values * penalty, values / penalty)
    return lowered


class _Penalty(LogitsProcessor):
    """`penalized` for generate; its own would also count the padding."""

    def __init__(self, prompts: list[list[int]], decoding: Decoding):
        self.start = [max(map(len, prompts)) - len(prompt) for prompt in prompts]
        self.decoding = decoding

    def __call__(self, input_ids, scores):
        seen = [ids[self.start[row // self.decoding.beams] :] for row, ids in enumerate(input_ids.tolist())]
        return penalized(scores, seen, self.decoding.repetition_penalty)


def _generate(model: PreTrainedModel | PeftModel, prompts: list[list[int]], decoding: Decoding) -> list[Answer]:
    """One call of `generate` on prompts padded on the left."""
    device = next(model.parameters()).device
    length = max(map(len, prompts))
    ids = torch.tensor([[decoding.pad_id] * (length - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    with computing(model), _no_generation_defaults(model):
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=decoding.min_new_tokens or None,
            do_sample=False,
            num_beams=decoding.beams,
            logits_processor=[_Penalty(prompts, decoding)] if decoding.repetition_penalty != 1 else None,
            eos_token_id=decoding.stop_ids,
            pad_token_id=decoding.pad_id,
            return_dict_in_generate=True,
            output_logits=decoding.beams == 1,
            output_scores=decoding.beams > 1,
        )
    if decoding.beams > 1:  # a beam search's scores are log-probabilities
        steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    else:  # scores would be the logits after generate has struck out stops
        steps = model.compute_transition_scores(out.sequences, out.logits, normalize_logits=True)
    answers = []
    for new, log_probabilities in zip(out.sequences[:, length:].tolist(), steps.float().tolist(), strict=True):
        stop = next((position for position, token in enumerate(new) if token in decoding.stop_ids), None)
        count = len(new) if stop is None else stop + 1
        answers.append(Answer(new[:count], stop is not None, sum(log_probabilities[:count]) / count))
    return answers
