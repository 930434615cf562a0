"""Run other systems where they are installed, each in a process of its own.

They have processes of their own because they patch the libraries they use. Trainers get the same
base folder, the same token ids and labels (answers only), rank, batch and step, and are timed for
an epoch after one that warms up: Unsloth's is a second training, LLaMA-Factory's goes on.
vLLM gets the same prompts and answers each with as many tokens, its prefix cache on and empty at
the start. Unsloth and vLLM are written against their documentation (FastLanguageModel, LLM) and
were never run by us; nor was LLaMA-Factory on a GPU. On a CPU LLaMA-Factory 0.9.5 was run, in an
environment of its own, because it needs a TRL of before 1.0. A trainer is run so, the second line
in its own environment:

python -m benchmarks.training --model FOLDER --data FILE --job job.json
python -m benchmarks.peers llamafactory job.json
"""

import sys
from pathlib import Path

# So that `python benchmarks/NAME.py` works like `python -m benchmarks.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dandap.cli  # noqa: F401

# isort: split
import argparse
import importlib.util
import json
import os
import subprocess
import tempfile
import time

TRAINERS, ANSWERERS = ("unsloth", "llamafactory"), ("vllm",)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def run_peers(names: tuple[str, ...], job: dict) -> dict[str, float]:
    """Return the questions/s of each peer that is installed and does not fail; print the others.

    `job` holds what the workers below read from it.
    """
    speeds = {}
    for name in names:
        if importlib.util.find_spec(name) is None:
            print(f"{name:<14} not installed")
            continue
        if not Path(job["model"]).is_dir():
            print(f"{name:<14} left out: it needs a model folder, not a shape")
            continue
        speed = _run_worker(name, job)
        if speed:
            speeds[name] = speed
            print(f"{name:<14} {speed:>7.1f} questions/s")
    return speeds


def _run_worker(name: str, job: dict) -> float | None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.peers", name, str(file)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            # The last line of a traceback says what went wrong.
            said = done.stderr.strip().splitlines()
            print(f"{name:<14} failed: {said[-1] if said else done.returncode}")
            return None
        # The worker prints its questions/s last, after whatever its libraries print.
        return float(done.stdout.strip().splitlines()[-1])


def _unsloth(job: dict) -> float:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel  # before trl and transformers, as it asks

    model, tokenizer = FastLanguageModel.from_pretrained(
        job["model"], max_seq_length=job["longest"], load_in_4bit=job["quantization"] == "nf4"
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=job["lora_r"],
        lora_alpha=job["lora_alpha"],
        lora_dropout=0,
        target_modules=PROJECTIONS,
        use_gradient_checkpointing="unsloth" if job["gradient_checkpointing"] else False,
    )
    config = SFTConfig(
        output_dir=job["folder"],
        per_device_train_batch_size=job["batch"],
        gradient_accumulation_steps=job["questions_per_step"] // job["batch"],
        num_train_epochs=1,
        train_sampling_strategy="group_by_length",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        save_strategy="no",
        report_to="none",
    )
    trainer = SFTTrainer(
        model, args=config, train_dataset=Dataset.from_list(job["rows"]), processing_class=tokenizer
    )
    # The first epoch warms up and does not count, as with the ways of benchmarks.training.
    trainer.train()
    started = time.perf_counter()
    trainer.train()
    return len(job["rows"]) / (time.perf_counter() - started)


def _llamafactory(job: dict) -> float:
    # One GPU, as with the ways of benchmarks.training; with more it wants to be run by torchrun.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

    from datasets import Dataset, DatasetDict
    from llamafactory.train.tuner import run_exp

    folder = Path(job["folder"])
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in job["rows"]]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(folder / "tokens"))
    dtype = _native_dtype()
    config = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(_base_in(dtype, Path(job["model"]), folder / "base")),
        "template": "default",
        # It insists on a name here, though it reads what is in tokenized_path.
        "dataset": "tokens",
        "tokenized_path": str(folder / "tokens"),
        "cutoff_len": job["longest"],
        "finetuning_type": "lora",
        "lora_rank": job["lora_r"],
        "lora_alpha": job["lora_alpha"],
        "lora_target": "all",
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": job["batch"],
        "gradient_accumulation_steps": job["questions_per_step"] // job["batch"],
        "num_train_epochs": 2,
        "train_sampling_strategy": "group_by_length",
        "disable_gradient_checkpointing": not job["gradient_checkpointing"],
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "save_strategy": "no",
        "report_to": "none",
    }
    if job["quantization"] == "nf4":
        config |= {"quantization_bit": 4, "quantization_method": "bnb"}
    clock = _last_epochs_clock()
    run_exp(config, callbacks=[clock])
    return len(job["rows"]) / clock.seconds


def _native_dtype() -> str:
    """Return the number format that the device computes in, as ours picks it."""
    import torch

    if not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def _base_in(dtype: str, model: Path, base: Path) -> Path:
    """Return a folder with the base's files and a config that names this number format.

    LLaMA-Factory loads a base in the one that its config names, by a newer or an older name.
    """
    base.mkdir()
    for file in model.resolve().iterdir():
        (base / file.name).symlink_to(file)
    shape = json.loads((base / "config.json").read_text())
    (base / "config.json").unlink()
    (base / "config.json").write_text(json.dumps({**shape, "dtype": dtype, "torch_dtype": dtype}))
    return base


def _last_epochs_clock():
    """Return a callback whose `seconds` are those of the last epoch: the first warms up."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_epoch_begin(self, *_, **__):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.started = time.perf_counter()

        def on_train_end(self, *_, **__):
            # The trainer has read the loss by now, for which it waits for the GPU.
            self.seconds = time.perf_counter() - self.started

    return Clock()


def _vllm(job: dict) -> float:
    from vllm import LLM, SamplingParams

    quantization = {"quantization": "bitsandbytes"} if job["quantization"] == "nf4" else {}
    llm = LLM(
        job["model"],
        max_model_len=job["longest"] + job["new_tokens"],
        enable_prefix_caching=True,
        **quantization,
    )
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    how = SamplingParams(
        temperature=0, max_tokens=job["new_tokens"], min_tokens=job["new_tokens"], ignore_eos=True
    )
    # The first round warms up; what it left in the prefix cache must not answer the second.
    llm.generate(prompts, how)
    llm.reset_prefix_cache()
    started = time.perf_counter()
    llm.generate(prompts, how)
    return len(prompts) / (time.perf_counter() - started)


WORKERS = {"unsloth": _unsloth, "llamafactory": _llamafactory, "vllm": _vllm}


def work(name: str, file: Path) -> float:
    """Return the questions/s of one peer, run in this process on the job of a JSON file."""
    # Beside the job, so that it goes with the folder of run_peers even if this process is killed.
    with tempfile.TemporaryDirectory(dir=file.resolve().parent) as folder:
        return WORKERS[name]({**json.loads(file.read_text()), "folder": folder})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=WORKERS)
    parser.add_argument("job", type=Path, help="written by benchmarks.training --job")
    arguments = parser.parse_args()
    print(work(arguments.name, arguments.job))
