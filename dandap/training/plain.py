"""The plain way: TRL's SFTTrainer with the loss on answers alone.

The article is read once per question.
"""

import math
from contextlib import contextmanager

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from dandap.data.encode import Example
from dandap.errors import InputError
from dandap.model.distributed import process_count
from dandap.model.memory import Plan
from dandap.recipe import Recipe
from dandap.training.checkpoints import CrashProof
from dandap.training.job import Job


def make_trainer(
    job: Job, model: PeftModel, checkpoints: str, callbacks: list[TrainerCallback]
) -> SFTTrainer:
    """Return an SFTTrainer over encoded examples.

    The loss is on their answer tokens, and the adapter stays in float32.
    """
    recipe, plan, examples = job.recipe, job.plan, job.examples
    longest = max(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
    questions, rest = divmod(recipe.questions_per_step, process_count())
    if rest:
        raise InputError(
            f"questions_per_step={recipe.questions_per_step} cannot be shared by {process_count()} "
            f"processes with read_once false; give a multiple of {process_count()}."
        )
    micro, accumulation = split_step(questions, plan.tokens_per_batch // longest)
    config = training_config(recipe, plan, checkpoints, len(examples), micro, accumulation)
    data = supervised(examples)
    with float32_adapters(model):
        trainer = PlainTrainer(
            model, config, train_dataset=data, processing_class=job.tokenizer, callbacks=callbacks
        )
    trainer.ids = {
        tuple(ids): example.row.id for ids, example in zip(data["input_ids"], examples, strict=True)
    }
    trainer.remove_callback(PrinterCallback)  # ours prints a line with fixed fields
    return trainer


class PlainTrainer(CrashProof, SFTTrainer):
    """Trains as TRL's SFTTrainer does, crash-proof."""

    ids: dict[tuple[int, ...], str]  # token ids of an example -> its question's id
    rows: tuple[torch.Tensor, ...] = ()  # token ids of a step's examples

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Do TRL's step, and remember its rows for an error's message."""
        # This is called once a batch: the newest rows, as many as a step has.
        self.rows = (*self.rows, *inputs["input_ids"])[
            -self.args.gradient_accumulation_steps * self._train_batch_size :
        ]
        return super().training_step(model, inputs, num_items_in_batch)

    def questions_of_step(self) -> list[str]:
        """Return the ids of the questions whose tokens a row begins with."""
        # Not equal to: rows may be padded on the right.
        rows = [row.tolist() for row in self.rows]
        names = []
        for ids, name in self.ids.items():
            if any(row[: len(ids)] == list(ids) for row in rows):
                names.append(name)
        return names


@contextmanager
def float32_adapters(model: PeftModel):
    """Keep adapters as they are while a trainer is made.

    SFTTrainer's constructor casts those of every 4-bit model to bf16.
    """
    adapters = {
        name: parameter.data
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    yield
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = adapters[name]


def supervised(examples: list[Example]) -> Dataset:
    """Return prompts and answers as a dataset with labels on the answers only."""
    records = []
    for example in examples:
        ids = [*example.prompt_ids, *example.answer_ids]
        # -100: not in the loss.
        labels = [-100] * len(example.prompt_ids) + list(example.answer_ids)
        records.append({"input_ids": ids, "labels": labels})
    return Dataset.from_list(records)


def warmup_steps(recipe: Recipe, questions: int) -> int:
    """Return the steps of warm-up: the recipe's count, or its share of all steps.

    A share is at most a tenth of the steps, rounded down: a short run's only step would otherwise
    be one of warm-up.
    """
    steps = math.ceil(math.ceil(questions / recipe.questions_per_step) * recipe.epochs)
    if recipe.warmup_steps >= 1:
        return int(recipe.warmup_steps)
    return min(math.ceil(recipe.warmup_steps * steps), steps // 10)


def training_config(
    recipe: Recipe, plan: Plan, checkpoints: str, questions: int, micro: int, accumulation: int
) -> SFTConfig:
    """Return the recipe in TRL's words for so many questions.

    A step is `accumulation` batches of `micro` questions.
    """
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
        bf16=plan.compute_dtype is torch.bfloat16,
        fp16=on_gpu and plan.compute_dtype is torch.float16,
        use_cpu=not on_gpu,
        # Every adapter takes part in every step; the search costs a walk over the graph.
        ddp_find_unused_parameters=False,
        seed=recipe.seed,
        data_seed=recipe.seed,
        save_steps=recipe.save_steps,
        save_total_limit=None,  # dandap/training/checkpoints.py knows which are valid
        # Each step's own loss, the same when a run was interrupted; fewer are printed.
        logging_steps=1,
        logging_nan_inf_filter=False,  # otherwise a NaN is logged as a loss of 0.0
        disable_tqdm=True,
        report_to="none",  # dandap/training/trackers.py makes the trackers
        max_length=None,  # the encoder trims articles; TRL would cut answers
        # Models with experts would add how unevenly a micro-batch's tokens are routed. It depends
        # on which questions share the batch and how often an article is read: no tree equals it.
        router_aux_loss_coef=0.0,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    # With several GPUs visible Trainer would wrap the model in DataParallel, which SFTTrainer
    # refuses (Kaggle's two T4).
    config._n_gpu = min(config.n_gpu, 1)
    return config


def split_step(questions: int, most_rows: int) -> tuple[int, int]:
    """Return rows per batch and batches of a step: the largest batch that divides it and fits."""
    micro = max(
        (rows for rows in range(1, questions + 1) if questions % rows == 0 and rows <= most_rows),
        default=1,
    )
    return micro, questions // micro
