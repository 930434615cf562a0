"""Training that reads each article once: TRL's trainer over token trees, the same losses and gradients, fewer tokens."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer

from dandap.base.memory import Plan
from dandap.data.encoding import Example
from dandap.recipe import Recipe
from dandap.training.checkpoints import CrashProof
from dandap.training.job import Job
from dandap.training.plain import float32_adapters, supervised, training_config
from dandap.training.steps import Batching, Questions, StepSampler, make_batching
from dandap.tree.attention import use_tree_attention
from dandap.tree.masks import tree_masks


def make_read_once_trainer(
    job: Job, model: PeftModel, checkpoints: str, callbacks: list[TrainerCallback]
) -> "ReadOnceTrainer":
    """Return a ReadOnceTrainer over encoded examples, the loss on their answer tokens, the adapter in float32."""
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
            train_dataset=supervised(
                examples[:1]
            ),  # asked for by SFTTrainer; the examples are what is trained on
            processing_class=job.tokenizer,
            callbacks=callbacks,
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


@contextmanager
def _head_adapter_hidden(model: PeftModel) -> Iterator[None]:
    """SFTTrainer refuses an adapter on the LM head because its own loss goes around it; ours calls the module."""
    head = model.get_output_embeddings()
    if not isinstance(head, BaseTunerLayer):
        yield
        return
    model.get_output_embeddings = head.get_base_layer
    try:
        yield
    finally:
        del model.get_output_embeddings


class ReadOnceTrainer(CrashProof, SFTTrainer):
    """SFTTrainer whose dataloader items are whole optimizer steps: the step's trees, in micro-batches.

    The loss is the mean over all answer tokens of the step, on all processes, as SFTTrainer's is.
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
        """This process's share of every step. Not prepared by accelerate, which would deal it out once more."""
        return DataLoader(
            Questions(self.examples),
            batch_sampler=self.steps(),
            collate_fn=self.batching.collate_step,
        )

    def steps(self) -> "StepSampler":
        """The sampler; it asks the trainer's own counter for the epoch, so that a resumed run has the same order."""
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
        """Forward and backward over the step's micro-batches; processes exchange gradients after the last."""
        model.train()
        self.step_ids = inputs["ids"]
        losses = []
        batches = inputs["batches"]
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(
                        model, self._prepare_inputs(batch), num_items_in_batch=num_items_in_batch
                    )
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def questions_of_step(self) -> list[str]:
        return self.step_ids

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Summed cross-entropy of a micro-batch over the step's number of answer tokens.

        Times the number of processes, because DDP averages gradients over them.
        """
        outputs = model(
            input_ids=inputs["input_ids"],
            position_ids=inputs["position_ids"],
            attention_mask=tree_masks(
                self.model.config, inputs, self.mask_dtype, flex=self.batching.one_row
            ),
            logits_to_keep=inputs["predicts"],
            use_cache=False,
        )
        logits = outputs.logits.float()  # (positions that predict, vocab)
        right = logits[inputs["predictor"], inputs["target_ids"]]  # (targets,)
        loss = (logits.logsumexp(-1)[inputs["predictor"]] - right).sum() / num_items_in_batch
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _save(self, output_dir=None, state_dict=None):
        """Checkpoints hold the adapter's tensors; PEFT would add a copy of an LM head that has an adapter."""
        if self.args.should_save:
            self.model.save_pretrained(
                output_dir or self.args.output_dir,
                state_dict=state_dict,
                save_embedding_layers=False,
            )


def _first() -> int:
    return 0


def count_tokens(examples: list[Example], recipe: Recipe, plan: Plan) -> tuple[int, int]:
    """(tokens of an epoch that reads the article for every question, tokens of one that reads it once a step)."""
    batching = replace(make_batching(plan, pad_id=0), one_row=False)
    sampler = StepSampler(
        examples, recipe.questions_per_step, recipe.seed, process=0, processes=1, step=_first
    )
    steps = (batching.micro_batches([examples[key.index] for key in step]) for step in sampler)
    once = sum(len(part.tree) for step in steps for batch in step for part in batch)
    return sum(len(example.prompt_ids) + len(example.answer_ids) for example in examples), once
