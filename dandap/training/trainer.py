"""The trainers: TRL's SFTTrainer over token trees, and over one question at a time.

`ReadOnceTrainer` reads each article once a step; losses and gradients are those of `PlainTrainer`.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

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
from dandap.tree.attention import use_tree_attention
from dandap.tree.logits import logits_at, summed_cross_entropy
from dandap.tree.masks import tree_masks
from dandap.tree.token_tree import Packed


def make_trainer(
    recipe: Recipe,
    plan: Plan,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    model: PeftModel,
    checkpoints: Path | str,
    callbacks: Sequence[TrainerCallback] = (),
) -> "ReadOnceTrainer | PlainTrainer":
    """Return the recipe's trainer over encoded examples, its adapter in float32."""
    trainer: ReadOnceTrainer | PlainTrainer
    if recipe.read_once:
        # Trainer takes one dataloader item for one step, and ours are whole steps.
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
                batching=Batching.for_plan(plan, tokenizer.pad_token_id),
                mask_dtype=plan.compute_dtype,
                train_dataset=supervised(examples[:1]),  # SFTTrainer asks for one
                processing_class=tokenizer,
                callbacks=list(callbacks),
            )
    else:
        longest = max(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
        questions, rest = divmod(recipe.questions_per_step, world_size())
        if rest:
            raise InputError(
                f"questions_per_step={recipe.questions_per_step} cannot be shared by "
                f"{world_size()} processes with read_once false. Give a multiple."
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
    trainer.remove_callback(PrinterCallback)
    return trainer


class PlainTrainer(AtomicCheckpoints, SFTTrainer):
    """TRL's SFTTrainer with the loss on answers alone; the article is read for every question."""


class ReadOnceTrainer(AtomicCheckpoints, SFTTrainer):
    """Trains as SFTTrainer does, on dataloader items that are whole optimizer steps.

    An item has the step's trees, in micro-batches. The loss is the mean over all answer tokens of
    the step, on all processes, as SFTTrainer's is.
    """

    def __init__(
        self,
        model: PeftModel,
        args: SFTConfig,
        examples: list[Example],
        batching: Batching,
        mask_dtype: torch.dtype,
        **others: Any,
    ):
        super().__init__(model, args, **others)
        self.examples, self.batching, self.mask_dtype = examples, batching, mask_dtype
        self.step_examples: list[Example] = []

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader of this process's share of every step."""
        args = self.args
        on_gpu = args.device.type == "cuda"
        sampler = StepSampler(
            self.examples,
            args.per_device_train_batch_size,
            args.seed,
            # The trainer's own counter, so that a resumed run has the same order.
            step=lambda: self.state.global_step,
            process=args.process_index,
            processes=args.world_size,
        )
        # Not prepared by accelerate, which would deal the share out once more.
        return (PrefetchLoader if on_gpu else DataLoader)(
            Questions(self.examples),
            batch_sampler=sampler,
            # Asked anew for every step: its size may be halved while training.
            collate_fn=lambda examples: self.batching.collate_step(examples),
            # Only from page-locked memory does a copy run while the host continues.
            pin_memory=on_gpu,
        )

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Run forward and backward over the step's micro-batches, and return the step's loss.

        Where memory runs out, the step is repeated in micro-batches of half the size.
        """
        model.train()
        self.step_examples, packed = inputs["examples"], inputs["packed"]
        if inputs["batching"] is not self.batching:  # collated ahead, before memory ran out
            packed = self.batching.collate_step(self.step_examples)["packed"]
        if world_size() > 1:
            # A process does not know that another's memory ran out, and would wait for it.
            return self._forward_and_backward(model, packed, num_items_in_batch)
        while True:
            work = partial(self._forward_and_backward, model, packed, num_items_in_batch)
            loss = unless_out_of_memory(work)
            if loss is not None:
                return loss
            model.zero_grad()
            self.batching = self._halved()
            packed = self.batching.collate_step(self.step_examples)["packed"]

    def _halved(self) -> Batching:
        """Return the batching of half the size; OutOfMemoryError where nothing can be split."""
        batches = self.batching.micro_batches(self.step_examples)
        if all(len(batch) == 1 and len(batch[0].members) == 1 for batch in batches):
            raise torch.OutOfMemoryError("a single question does not fit")
        # The largest batch may be far below the limit; half of the limit could be the same again.
        tokens = min(self.batching.tokens_per_batch, max(map(self.batching.size, batches)))
        print(f"out of memory with {tokens} tokens in a batch: continuing with {tokens // 2}")
        return replace(self.batching, tokens_per_batch=tokens // 2)

    def _forward_and_backward(self, model, packed: Packed, num_items_in_batch) -> torch.Tensor:
        losses = []
        batches = packed.on(self.args.device)
        for number, batch in enumerate(batches):
            # Processes exchange gradients once, after their last micro-batch: they may have
            # different numbers of micro-batches.
            last = number == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, batch, num_items_in_batch=num_items_in_batch)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return a micro-batch's summed cross-entropy over the step's number of answer tokens."""
        masks = tree_masks(self.model.config, inputs, self.mask_dtype, flex=self.batching.one_row)
        with logits_at(self.model, inputs["predicts"]):
            outputs = model(
                input_ids=inputs["input_ids"],
                position_ids=inputs["position_ids"],
                attention_mask=masks,
                use_cache=False,
            )
        targets = inputs["predictor"], inputs["target_ids"], inputs["times"]
        loss = summed_cross_entropy(outputs.logits, *targets) / num_items_in_batch
        # DDP averages gradients over the processes, and the count is already that of all of them.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def questions_of_step(self) -> list[str]:
        """Return the ids of the current step's questions on this process."""
        return [example.row.id for example in self.step_examples]

    def _save(self, output_dir=None, state_dict=None):
        """Write the adapter's tensors; PEFT would add a copy of an LM head that has an adapter."""
        if self.args.should_save:
            self.model.save_pretrained(
                output_dir or self.args.output_dir,
                state_dict=state_dict,
                save_embedding_layers=False,
            )


class PrefetchLoader(DataLoader):
    """Loads the next step in a thread while the GPU works on the current one.

    The rest of a resumed epoch is loaded step by step: accelerate makes its own loader for it.
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

    TRL's own loss bypasses the module; ours calls it.
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
    """Keep adapters in their precision: SFTTrainer's constructor casts those of 4-bit models."""
    trained = [(p, p.data) for p in model.parameters() if p.requires_grad]
    yield
    for parameter, data in trained:
        parameter.data = data


def supervised(examples: list[Example]) -> Dataset:
    """Return prompts and answers as a dataset with labels on the answers only."""
    records = []
    for example in examples:
        ids = [*example.prompt_ids, *example.answer_ids]
        labels = [-100] * len(example.prompt_ids) + list(example.answer_ids)
        records.append({"input_ids": ids, "labels": labels})
    return Dataset.from_list(records)


def split_step(questions: int, most_rows: int) -> tuple[int, int]:
    """Return rows per batch and batches of a step: the largest batch that divides it and fits."""
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
    """Return the recipe as TRL's config, for so many training questions."""
    steps = math.ceil(math.ceil(questions / recipe.questions_per_step) * recipe.epochs)
    warmup = int(recipe.warmup_steps)
    if recipe.warmup_steps < 1:
        # At most a tenth, rounded down: a short run's only step would otherwise be warm-up.
        warmup = min(math.ceil(recipe.warmup_steps * steps), steps // 10)
    on_gpu = plan.device.type == "cuda"
    config = SFTConfig(
        output_dir=str(checkpoints),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=recipe.epochs,
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
        # Every adapter takes part in every step; the search costs a walk over the graph.
        ddp_find_unused_parameters=False,
        seed=recipe.seed,
        data_seed=recipe.seed,
        save_steps=recipe.save_steps,
        save_total_limit=None,  # AtomicCheckpoints knows which checkpoints are valid
        logging_steps=1,
        logging_nan_inf_filter=False,  # otherwise a NaN is logged as a loss of 0.0
        disable_tqdm=True,
        report_to="none",  # callbacks.py makes the trackers
        max_length=None,  # the encoder shortens articles; TRL would cut answers
        # A routing loss depends on which tokens share a micro-batch and how often an article is
        # read: no tree equals it.
        router_aux_loss_coef=0.0,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    # With several visible GPUs Trainer would use DataParallel, which SFTTrainer rejects.
    config._n_gpu = min(config.n_gpu, 1)
    return config
