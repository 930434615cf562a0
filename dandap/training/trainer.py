"""TRL's SFTTrainer on token trees (`ReadOnceTrainer`) and on single questions (`PlainTrainer`).

Both have the same losses and gradients.
"""

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from dandap.data.encode import Example
from dandap.errors import InputError
from dandap.model.device import unless_out_of_memory
from dandap.model.distributed import world_size
from dandap.model.memory import Plan
from dandap.recipe import Recipe
from dandap.training.batching import Batching, Questions, StepSampler
from dandap.training.checkpoints import AtomicCheckpoints
from dandap.training.compiled import MIN_SECONDS, compile_layers
from dandap.tree.attention import use_tree_attention
from dandap.tree.logits import logits_at, summed_cross_entropy
from dandap.tree.masks import tree_masks
from dandap.tree.mixers import mixers_of
from dandap.tree.token_tree import Packed

CHECKED_STEPS = 5  # timed, then used to check the compiled layers


def make_trainer(
    recipe: Recipe,
    plan: Plan,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    model: PeftModel,
    checkpoints: Path | str,
    callbacks: Sequence[TrainerCallback] = (),
) -> "ReadOnceTrainer | PlainTrainer":
    """Return the recipe's trainer for encoded examples, with a float32 adapter."""
    trainer: ReadOnceTrainer | PlainTrainer
    if recipe.read_once:
        # One dataloader item is one whole step.
        config = training_config(
            recipe, plan, checkpoints, len(examples), recipe.questions_per_step, 1
        )
        if plan.flex:
            use_tree_attention(model.get_base_model())
        with float32_adapters(model), _head_adapter_hidden(model):
            trainer = ReadOnceTrainer(
                model,
                config,
                examples=examples,
                batching=Batching.for_plan(
                    plan, tokenizer.pad_token_id, mixers_of(model) is not None
                ),
                mask_dtype=plan.compute_dtype,
                compile_mode=recipe.compile,
                train_dataset=supervised(examples[:1]),  # required, not used
                processing_class=tokenizer,
                callbacks=list(callbacks),
            )
    else:
        longest = max(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
        questions, rest = divmod(recipe.questions_per_step, world_size())
        if rest:
            raise InputError(
                f"questions_per_step: got {recipe.questions_per_step}, expected a multiple of the "
                f"{world_size()} processes with read_once false."
            )
        base: Any = model.get_base_model()
        if base.base_model is base:
            raise InputError(f"TRL cannot train {base.config.model_type}. Choose another base.")
        rows, accumulation = split_step(questions, plan.tokens_per_batch // longest)
        config = training_config(recipe, plan, checkpoints, len(examples), rows, accumulation)
        with float32_adapters(model):
            trainer = PlainTrainer(
                model,
                config,
                train_dataset=supervised(examples),
                processing_class=tokenizer,
                callbacks=list(callbacks),
            )
    if recipe.compile is True and not getattr(trainer, "compile_mode", False):
        print("layers are not compiled: only layers with attention, and with read_once true")
    trainer.remove_callback(PrinterCallback)
    return trainer


class PlainTrainer(AtomicCheckpoints, SFTTrainer):
    """TRL's SFTTrainer with the loss on answers only, one sequence per question."""


class ReadOnceTrainer(AtomicCheckpoints, SFTTrainer):
    """SFTTrainer on token trees; a dataloader item is an optimizer step in micro-batches.

    As in SFTTrainer, the loss is the mean over all answer tokens of the step on all processes.
    """

    def __init__(
        self,
        model: PeftModel,
        args: SFTConfig,
        examples: list[Example],
        batching: Batching,
        mask_dtype: torch.dtype,
        compile_mode: Literal["auto"] | bool,
        **others: Any,
    ):
        super().__init__(model, args, **others)
        # For compute_loss, which divides by the step's tokens; multimodal classes reject the count.
        self.model_accepts_loss_kwargs = True
        self.examples, self.batching, self.mask_dtype = examples, batching, mask_dtype
        self.mixers = mixers_of(model)
        # Mixers have new shapes in every batch.
        self.compile_mode = False if self.mixers else compile_mode
        self.first_steps: list[tuple[list[Example], float]] = []  # (examples, start time)
        self.step_examples: list[Example] = []

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader of this process's share of every step."""
        args = self.args
        on_gpu = args.device.type == "cuda"
        sampler = StepSampler(
            self.examples,
            args.per_device_train_batch_size,
            args.seed,
            # The trainer's counter, so that a resumed run has the same order.
            step=lambda: self.state.global_step,
            process=args.process_index,
            processes=args.world_size,
        )
        # Not prepared by accelerate, which would split it again.
        return (PrefetchLoader if on_gpu else DataLoader)(
            Questions(self.examples),
            batch_sampler=sampler,
            # Looked up per step, because an out-of-memory error halves the batch size.
            collate_fn=lambda examples: self.batching.collate_step(examples),
            # Asynchronous copies need pinned memory.
            pin_memory=on_gpu,
        )

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Run forward and backward on the step's micro-batches, and return the loss.

        After an out-of-memory error, repeat the step with micro-batches of half the size.
        """
        model.train()
        self.step_examples, packed = inputs["examples"], inputs["packed"]
        if inputs["batching"] is not self.batching:  # prefetched before the size was halved
            packed = self.batching.collate_step(self.step_examples)["packed"]
        self._compile_layers()
        if world_size() > 1:
            # The other processes would wait for the repeated step.
            return self._forward_and_backward(model, packed, num_items_in_batch)
        while True:
            work = partial(self._forward_and_backward, model, packed, num_items_in_batch)
            loss = unless_out_of_memory(work)
            if loss is not None:
                return loss
            model.zero_grad()
            self.batching = self._halved()
            packed = self.batching.collate_step(self.step_examples)["packed"]

    def _compile_layers(self) -> None:
        """After the first steps, compile the layers if the remaining time justifies it."""
        if self.compile_mode is False:
            return
        self.first_steps.append((self.step_examples, time.perf_counter()))
        if len(self.first_steps) < CHECKED_STEPS:
            return
        (_, first), *_, (_, last) = self.first_steps
        remaining = self.state.max_steps - self.state.global_step
        auto, self.compile_mode = self.compile_mode == "auto", False
        if not auto or (last - first) / (CHECKED_STEPS - 1) * remaining >= MIN_SECONDS:
            # Collated again, because an out-of-memory error may have halved the batches.
            steps = [self.batching.collate_step(examples) for examples, _ in self.first_steps]
            batches = [b for step in steps for b in step["packed"].on(self.args.device)]
            with self.compute_loss_context_manager():
                print(compile_layers(self.model, self.compute_loss, batches, faster=auto))
        self.first_steps.clear()

    def _halved(self) -> Batching:
        """Return a Batching of half the size; raise OutOfMemoryError if no batch can be split."""
        batches = self.batching.micro_batches(self.step_examples)
        if all(len(batch) == 1 and len(batch[0].members) == 1 for batch in batches):
            raise torch.OutOfMemoryError("a single question does not fit")
        # Half of the largest batch, which may be far below the limit.
        tokens = min(self.batching.tokens_per_batch, max(map(self.batching.size, batches)))
        print(f"out of memory with {tokens} tokens per batch: continuing with {tokens // 2}")
        return replace(self.batching, tokens_per_batch=tokens // 2)

    def _forward_and_backward(self, model, packed: Packed, num_items_in_batch) -> torch.Tensor:
        losses = []
        batches = packed.on(self.args.device)
        for number, batch in enumerate(batches):
            # Exchange gradients once: processes may have different numbers of micro-batches.
            last = number == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, batch, num_items_in_batch=num_items_in_batch)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return a micro-batch's summed cross-entropy divided by the step's answer tokens."""
        masks = tree_masks(self.model.config, inputs, self.mask_dtype, flex=self.batching.one_row)
        if self.mixers:
            self.mixers.read_next(inputs)
        with logits_at(self.model, inputs["predicts"]):
            outputs = model(
                input_ids=inputs["input_ids"],
                position_ids=inputs["position_ids"],
                attention_mask=masks,
                use_cache=False,
            )
        targets = inputs["predictor"], inputs["target_ids"], inputs["times"]
        loss = summed_cross_entropy(outputs.logits, *targets) / num_items_in_batch
        # DDP averages gradients, but the count already covers all processes.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def questions_of_step(self) -> list[str]:
        """Return the ids of the current step's questions on this process."""
        return [example.row.id for example in self.step_examples]

    def _save(self, output_dir=None, state_dict=None):
        """Write the adapter without PEFT's copy of an adapted LM head."""
        if self.args.should_save:
            self.model.save_pretrained(
                output_dir or self.args.output_dir,
                state_dict=state_dict,
                save_embedding_layers=False,
            )


class PrefetchLoader(DataLoader):
    """Prefetches the next step in a thread.

    The rest of a resumed epoch is not prefetched, because accelerate creates another loader for it.
    """

    def __iter__(self) -> Iterator[dict]:  # type: ignore[override]
        steps = super().__iter__()
        with ThreadPoolExecutor(max_workers=1) as worker:
            coming = worker.submit(next, steps, None)
            while (step := coming.result()) is not None:
                coming = worker.submit(next, steps, None)
                yield step


@contextmanager
def _head_adapter_hidden(model: PeftModel) -> Iterator[None]:
    """Hide an adapter on the LM head from SFTTrainer's constructor, which rejects it.

    TRL's loss bypasses the head's module; ours does not.
    """
    wrapper: Any = model
    head = wrapper.get_output_embeddings()
    if not isinstance(head, BaseTunerLayer):
        yield
        return
    wrapper.get_output_embeddings = head.get_base_layer
    try:
        yield
    finally:
        del wrapper.get_output_embeddings


@contextmanager
def float32_adapters(model: PeftModel) -> Iterator[None]:
    """Restore float32 adapters, which SFTTrainer's constructor casts for 4-bit models."""
    trained = [(p, p.data) for p in model.parameters() if p.requires_grad]
    yield
    for parameter, data in trained:
        parameter.data = data


def supervised(examples: list[Example]) -> Dataset:
    """Return a dataset with labels on the answers only."""
    records = []
    for example in examples:
        ids = [*example.prompt_ids, *example.answer_ids]
        labels = [-100] * len(example.prompt_ids) + list(example.answer_ids)
        records.append({"input_ids": ids, "labels": labels})
    return Dataset.from_list(records)


def split_step(questions: int, most_rows: int) -> tuple[int, int]:
    """Return (rows per batch, batches per step) with the largest fitting batch."""
    fitting = [n for n in range(1, questions + 1) if questions % n == 0 and n <= most_rows]
    rows = max(fitting, default=1)
    return rows, questions // rows


def training_config(
    recipe: Recipe,
    plan: Plan,
    checkpoints: Path | str,
    questions: int,
    batch_size: int,
    accumulation: int,
) -> SFTConfig:
    """Return TRL's config for a recipe and a number of training questions."""
    epochs = recipe.epochs_for(questions)
    steps = math.ceil(recipe.steps_per_epoch(questions) * epochs)
    warmup = int(recipe.warmup_steps)
    if recipe.warmup_steps < 1:
        # At most a tenth, so that a short run is not all warmup.
        warmup = min(math.ceil(recipe.warmup_steps * steps), steps // 10)
    on_gpu = plan.device.type == "cuda"
    config = SFTConfig(
        output_dir=str(checkpoints),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=warmup,
        optim=recipe.optim,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        neftune_noise_alpha=recipe.neftune_noise_alpha,
        activation_checkpointing=plan.gradient_checkpointing,
        bf16=plan.compute_dtype is torch.bfloat16,
        fp16=on_gpu and plan.compute_dtype is torch.float16,
        use_cpu=not on_gpu,
        # Every adapter is used in every step.
        ddp_find_unused_parameters=False,
        seed=recipe.seed,
        data_seed=recipe.seed,
        save_steps=recipe.save_steps,
        save_total_limit=None,  # AtomicCheckpoints removes old ones
        logging_steps=1,
        logging_nan_inf_filter=False,  # else a NaN is logged as 0.0
        disable_tqdm=True,
        report_to="none",  # see callbacks.Tracker
        max_length=None,  # TRL would cut answers
        # A routing loss depends on the tokens in a micro-batch, so trees cannot match it.
        router_aux_loss_coef=0.0,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    # Several visible GPUs would select DataParallel, which SFTTrainer rejects.
    config._n_gpu = min(config.n_gpu, 1)
    return config
