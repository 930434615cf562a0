"""Training that reads each article once: TRL's trainer over token trees.

Losses and gradients are the same, and the tokens fewer.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer

from dandap.data.encode import Example
from dandap.model.device import unless_out_of_memory
from dandap.model.distributed import process_count
from dandap.model.memory import Plan
from dandap.recipe import Recipe
from dandap.training.batching import Batching, Questions, StepSampler, make_batching
from dandap.training.checkpoints import CrashProof
from dandap.training.job import Job
from dandap.training.plain import float32_adapters, supervised, training_config
from dandap.tree.attention import use_tree_attention
from dandap.tree.logits import logits_at, summed_cross_entropy
from dandap.tree.masks import tree_masks
from dandap.tree.transfer import Packed


def make_read_once_trainer(
    job: Job, model: PeftModel, checkpoints: str, callbacks: list[TrainerCallback]
) -> "ReadOnceTrainer":
    """Return a ReadOnceTrainer over encoded examples.

    The loss is on their answer tokens, and the adapter stays in float32.
    """
    recipe, plan, examples = job.recipe, job.plan, job.examples
    # Trainer takes one dataloader item for one step, and that is what ours are.
    config = training_config(
        recipe, plan, checkpoints, len(examples), micro=recipe.questions_per_step, accumulation=1
    )
    if plan.flex:
        use_tree_attention(model.get_base_model())
    with float32_adapters(model), _head_adapter_hidden(model):
        trainer = ReadOnceTrainer(
            model,
            config,
            examples=examples,
            batching=make_batching(plan, job.tokenizer.pad_token_id),
            mask_dtype=plan.compute_dtype,
            # Asked for by SFTTrainer; the examples are what is trained on.
            train_dataset=supervised(examples[:1]),
            processing_class=job.tokenizer,
            callbacks=callbacks,
        )
    trainer.remove_callback(PrinterCallback)  # ours prints a line with fixed fields
    return trainer


@contextmanager
def _head_adapter_hidden(model: PeftModel) -> Iterator[None]:
    """Hide an adapter on the LM head while a trainer is made.

    SFTTrainer refuses one because its own loss goes around it; ours calls the module.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, BaseTunerLayer):
        yield
        return
    model.get_output_embeddings = head.get_base_layer
    try:
        yield
    finally:
        del model.get_output_embeddings


class StepsAhead(DataLoader):
    """Loads the next step in a thread while the GPU works on the one at hand.

    The rest of a resumed epoch is loaded step by step: accelerate makes a loader of its own for it.
    """

    def __iter__(self) -> Iterator[dict]:
        """Yield the steps of an epoch."""
        steps = super().__iter__()
        with ThreadPoolExecutor(max_workers=1) as worker:
            coming = worker.submit(next, steps, None)
            while (step := coming.result()) is not None:
                coming = worker.submit(next, steps, None)
                yield step


class ReadOnceTrainer(CrashProof, SFTTrainer):
    """Trains as SFTTrainer does, on dataloader items that are whole optimizer steps.

    An item holds the step's trees, in micro-batches. The loss is the mean over all answer tokens of
    the step, on all processes, as SFTTrainer's is.
    """

    def __init__(
        self,
        model,
        args,
        examples: list[Example],
        batching: "Batching",
        mask_dtype: torch.dtype,
        **others,
    ):
        super().__init__(model, args, **others)
        self.examples, self.batching, self.mask_dtype = examples, batching, mask_dtype

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader of this process's share of every step."""
        on_gpu = self.args.device.type == "cuda"
        # Not prepared by accelerate, which would deal the share out once more.
        return (StepsAhead if on_gpu else DataLoader)(
            Questions(self.examples),
            batch_sampler=self.steps(),
            collate_fn=self._collate,
            # Only from page-locked memory does a copy run while the host goes on.
            pin_memory=on_gpu,
        )

    def _collate(self, examples: list[Example]) -> dict:
        return self.batching.collate_step(examples)  # whose size may be halved while training

    def steps(self) -> "StepSampler":
        """Return the sampler of steps.

        It asks the trainer's own counter for the epoch, so that a resumed run has the same order.
        """
        args = self.args
        return StepSampler(
            self.examples,
            args.per_device_train_batch_size,
            args.seed,
            args.process_index,
            args.world_size,
            step=self._step,
        )

    def _step(self) -> int:
        return self.state.global_step

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Run forward and backward over the step's micro-batches, and return the step's loss.

        Where memory runs out, the step is done again in micro-batches of half the size.
        """
        model.train()
        self.step_examples, packed = inputs["examples"], inputs["packed"]
        if inputs["batching"] is not self.batching:  # collated ahead, before memory ran out
            packed = self._collate(self.step_examples)["packed"]
        work = partial(self._forward_and_backward, model, packed, num_items_in_batch)
        # Processes would not know of each other's lack, and wait for each other's gradients.
        loss = unless_out_of_memory(work) if process_count() == 1 else work()
        while loss is None:
            model.zero_grad()
            self.batching = self._halved()
            packed = self._collate(self.step_examples)["packed"]
            work = partial(self._forward_and_backward, model, packed, num_items_in_batch)
            loss = unless_out_of_memory(work)
        return loss

    def _halved(self) -> "Batching":
        """Return the batching of half the size; OutOfMemoryError where nothing can be split."""
        batches = self.batching.micro_batches(self.step_examples)
        if all(len(batch) == 1 and len(batch[0].members) == 1 for batch in batches):
            raise torch.OutOfMemoryError("a single question does not fit")
        # A single question larger than the limit stays whole: half of it might be the same again.
        tokens = min(self.batching.tokens_per_batch, max(map(self.batching.size, batches)))
        print(f"out of memory with {tokens} tokens in a batch: going on with {tokens // 2}")
        return replace(self.batching, tokens_per_batch=tokens // 2)

    def _forward_and_backward(self, model, packed: Packed, num_items_in_batch) -> torch.Tensor:
        losses = []
        batches = packed.on(self.args.device)
        for number, batch in enumerate(batches):
            # Processes exchange gradients once, after the last micro-batch; they may have different
            # numbers of micro-batches, and with an exchange in each would wait for each other.
            last = number == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, batch, num_items_in_batch=num_items_in_batch)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def questions_of_step(self) -> list[str]:
        """Return the ids of the questions of the step at hand."""
        return [example.row.id for example in self.step_examples]

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

    def _save(self, output_dir=None, state_dict=None):
        """Write the adapter's tensors; PEFT would add a copy of an LM head that has an adapter."""
        if self.args.should_save:
            self.model.save_pretrained(
                output_dir or self.args.output_dir,
                state_dict=state_dict,
                save_embedding_layers=False,
            )


def _first() -> int:
    return 0


def count_tokens(
    examples: list[Example], recipe: Recipe, plan: Plan, most_steps: int | None = None
) -> tuple[int, int]:
    """Return an epoch's tokens with the article read for every question, and with it read once.

    Once is once a step, or more often where a step's questions on an article do not fit together.
    Of more than `most_steps` steps as many, evenly spread, are counted, and stand for the others.
    """
    batching = replace(make_batching(plan, pad_id=0), one_row=False)
    sampler = StepSampler(
        examples, recipe.questions_per_step, recipe.seed, process=0, processes=1, step=_first
    )
    steps = list(sampler)
    alone = once = 0
    for step in steps[:: math.ceil(len(steps) / (most_steps or len(steps)))]:
        members = [examples[key.index] for key in step]
        alone += sum(map(_length, members))
        for batch in batching.micro_batches(members):
            once += sum(len(part.tree) for part in batch)
    every_time = sum(map(_length, examples))
    return every_time, round(once * every_time / alone)


def _length(example: Example) -> int:
    return len(example.prompt_ids) + len(example.answer_ids)
