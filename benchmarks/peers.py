"""Measure other systems, if installed, on the same job, each in a separate process.

They need separate processes because they patch the libraries they use. Trainers get the same base
model, token ids, labels (answers only), rank, batch size and step size. Their second epoch is
timed: Unsloth starts a second run, LLaMA-Factory continues the first. vLLM gets the same
prompts and generates the same number of tokens, with an empty prefix cache. The Unsloth and vLLM
workers follow their documentation and have never run. LLaMA-Factory 0.9.5 ran on a CPU only, in a
separate environment because it needs TRL before 1.0; run the second line there:

python -m benchmarks.training --model FOLDER --data FILE --job job.json
python -m benchmarks.peers llamafactory job.json
"""

import sys
from pathlib import Path

# For `python benchmarks/NAME.py`.
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
    """Return the questions/s of each installed peer; print why others are missing.

    `job` comes from `peer_job` of benchmarks.training or benchmarks.inference.
    """
    speeds = {}
    for name in names:
        if importlib.util.find_spec(name) is None:
            print(f"{name:<14} not installed")
            continue
        if not Path(job["model"]).is_dir():
            print(f"{name:<14} skipped: got a model name, expected a model folder")
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
            lines = done.stderr.strip().splitlines()  # the last one has the exception
            print(f"{name:<14} failed: {lines[-1] if lines else done.returncode}")
            return None
        # The worker's last line is its questions/s; its libraries print earlier lines.
        return float(done.stdout.strip().splitlines()[-1])


def _unsloth(job: dict) -> float:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel  # Unsloth requires this before trl and transformers

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
    # The first epoch is a warmup, as in benchmarks.training.
    trainer.train()
    started = time.perf_counter()
    trainer.train()
    return len(job["rows"]) / (time.perf_counter() - started)


def _llamafactory(job: dict) -> float:
    # One GPU, as in benchmarks.training; for more it requires torchrun.
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
        # It requires a name, although it reads tokenized_path.
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
    """Return the compute dtype that dandap selects for this device."""
    import torch

    if not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def _base_in(dtype: str, model: Path, base: Path) -> Path:
    """Link the model's files into a folder, with this dtype in its config.

    LLaMA-Factory loads the dtype in the config, under the newer or the older key.
    """
    base.mkdir()
    for file in model.resolve().iterdir():
        (base / file.name).symlink_to(file)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").unlink()
    (base / "config.json").write_text(json.dumps({**config, "dtype": dtype, "torch_dtype": dtype}))
    return base


def _last_epochs_clock():
    """Return a callback that stores the last epoch's seconds; the first is a warmup."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_epoch_begin(self, *_, **__):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.started = time.perf_counter()

        def on_train_end(self, *_, **__):
            # The trainer has synchronized with the GPU by reading the loss.
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
    sampling = SamplingParams(
        temperature=0, max_tokens=job["new_tokens"], min_tokens=job["new_tokens"], ignore_eos=True
    )
    # Warm up, then empty the prefix cache.
    llm.generate(prompts, sampling)
    llm.reset_prefix_cache()
    started = time.perf_counter()
    llm.generate(prompts, sampling)
    return len(prompts) / (time.perf_counter() - started)


WORKERS = {"unsloth": _unsloth, "llamafactory": _llamafactory, "vllm": _vllm}


def work(name: str, file: Path) -> float:
    """Run one peer in this process on the job in a JSON file; return its questions/s."""
    # Next to the job, so that run_peers deletes it even if this process is killed.
    with tempfile.TemporaryDirectory(dir=file.resolve().parent) as folder:
        return WORKERS[name]({**json.loads(file.read_text()), "folder": folder})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=WORKERS)
    parser.add_argument("job", type=Path, help="written by benchmarks.training --job")
    arguments = parser.parse_args()
    print(work(arguments.name, arguments.job))
