"""Convert a merged model to GGUF with llama.cpp, and write an Ollama Modelfile."""

import json
import os
import subprocess
import sys
from pathlib import Path

from dandap.data.encode import Encoder
from dandap.errors import InputError
from dandap.files import write_text
from dandap.recipe import Recipe
from prompts import render

# Ollama's defaults cut prompts at 4,096 tokens and penalize the last 64 tokens, which are words of
# the article. -1: the whole prompt, as in the run.
MODELFILE = '''FROM ./{file}
TEMPLATE """{template}"""
PARAMETER temperature {recipe.temperature}
PARAMETER num_ctx {recipe.max_length}
PARAMETER num_predict {recipe.max_new_tokens}
PARAMETER repeat_penalty {recipe.repetition_penalty}
PARAMETER repeat_last_n -1
'''
# Placeholders of article and question, in the private use area.
CONTEXT, QUESTION = "\ue000", "\ue001"


def find_converter() -> Path:
    """Return llama.cpp's converter in the folder LLAMA_CPP."""
    script = Path(os.environ.get("LLAMA_CPP", "llama.cpp"), "convert_hf_to_gguf.py")
    if not script.is_file():
        raise InputError(
            f"--to gguf needs llama.cpp's source, got no file at {script}. Run `git clone --depth "
            "1 https://github.com/ggml-org/llama.cpp` and `pip install -r requirements-extra.txt`, "
            "then LLAMA_CPP=llama.cpp python export.py ..."
        )
    return script


def write_gguf(
    folder: Path, merged: Path, script: Path, encoder: Encoder, recipe: Recipe, record: dict
) -> str:
    """Write a merged model as a GGUF, with an Ollama Modelfile; return the GGUF's name."""
    if record["untied"]:
        raise InputError(
            "llama.cpp's converter drops a trained LM head that the base ties to its embeddings. "
            "Use --to merged, or train without lm_head in lora_target_modules."
        )
    outtype = record["dtype"].replace("float", "f")  # f32, f16 or bf16
    file = f"{record['run']}-{outtype}.gguf"
    options = [merged, "--outfile", folder / file, "--outtype", outtype]
    ended = subprocess.run([sys.executable, script, *options], check=False)
    if ended.returncode or not (folder / file).is_file():
        raise InputError(
            f"{script} could not convert {merged} (exit code {ended.returncode}). Install "
            "requirements-extra.txt, try a newer llama.cpp, or use --to merged."
        )
    text = MODELFILE.format(file=file, template=ollama_template(encoder), recipe=recipe)
    for stop in record["stops"].values():
        text += f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}\n"
    write_text(folder / "Modelfile", text)
    return file


def ollama_template(encoder: Encoder) -> str:
    """Return the run's prompt for Ollama: .System is the article, .Prompt the question."""
    template = encoder.template
    try:
        parts = render(template, {"context": CONTEXT, "question": QUESTION})
    except KeyError:  # other fields: only the turns' markers
        parts = template | {part: QUESTION for part in template if part in ("user", "prompt")}
    text = encoder.prompt_text(parts)
    if encoder.starts_with_bos:  # llama.cpp adds it
        text = text.removeprefix(encoder.tokenizer.bos_token)
    # Escape {{, an action in Go templates, and three quotes, the end of the text.
    text = text.replace("{{", '{{ "{{" }}').replace('"""', '{{ "\\"\\"\\"" }}')
    return text.replace(CONTEXT, "{{ .System }}").replace(QUESTION, "{{ .Prompt }}")
