"""Make the bundled demo: a tiny Korean base model trained from scratch, and sample data about fictional companies.

    python -m tools.make_demo            # tokenizer, base model (about an hour on two cores), sample data
    python -m tools.make_demo --data     # only data/sample/

Everything follows from the seed. The base answers in full sentences, as a chat model does: fine-tuning then teaches
it the short answer. Its prompts are wordings of its own; no template of prompts.py is among them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python tools/NAME.py` works like `python -m tools.NAME`

import dandap.start  # noqa: F401

import argparse
import csv
import itertools
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tasks.dialogue_inference import INFERENCES, LETTERS
from tools.demo_articles import KS_SYLLABLES, SEAM, Article, Word, make_article, plain
from tools.demo_dialogues import make_dialogues, numbered
from tools.demo_wallpaper import make_rows, make_test

MODEL_DIR = Path("data/demo_model")
SAMPLE_DIR = Path("data/sample")
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>"]
VOCAB_SIZE = 5000
LEARNING_RATE = 3e-3
STEPS = 3000
TRAIN_ARTICLES, TEST_ARTICLES = 240, 60
TEST_DIALOGUES = 12
WALLPAPER_ROWS, WALLPAPER_TEST = 80, 20
WEIGHT_STD = 192**-0.5
OUTPUT_SCALE = 0.1
COPY_HEADS = 3
POINTER_LAYER, POINTER_WEIGHT = 3, 0.5
DRILL_UNTIL, DRILL_TOKENS = 0.05, 64
TOKENS_PER_STEP = 4000  # about; short articles first, so that one step holds many
PROMPT_WEIGHT, PROMPT_SHARE = 0.3, 0.15  # loss on articles and questions: they repeat names, which teaches copying
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# How people hand over an article and a question; {c} and {q}.
REQUESTS = (
    "다음 기사를 읽고 질문에 답하세요.\n\n기사:\n{c}\n\n질문: {q}",
    "주어진 글을 바탕으로 질문에 답해 줘.:\n\n{c}\n\nQuestion:\n{q}",
    "{c}\n\n{q}",
    "[기사]\n{c}\n\n[질문]\n{q}\n[답]",
    "{c} 너는 질문에 답하는 챗봇이야.\nQuestion: {q}\nAnswer:",
)
# How a chat model answers: in whole sentences. {a} takes particles as in demo_articles.
REPLIES = (
    "제공해 주신 기사에 따르면 질문하신 내용은 {a:인/인} 것으로 확인됩니다.",
    "기사 내용을 살펴보면 질문하신 내용의 답은 {a}입니다.",
    "{a:이라고/라고} 할 수 있습니다. 이는 기사 본문에서 확인됩니다.",
    "{a}입니다. 제공해 주신 기사 본문에 그렇게 나와 있습니다.",
    "말씀하신 내용은 기사에 나와 있으며 정답은 {a:으로/로} 보입니다.",
)


def make_tokenizer(articles: list[Article]) -> PreTrainedTokenizerFast:
    """BPE over syllables with byte fallback; no token spans a particle's seam, punctuation or two digits."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.NFC()
    words = [
        pre_tokenizers.Metaspace(prepend_scheme="always"),
        pre_tokenizers.Split(Regex(r"\n|[^\w\s▁]"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*words, pre_tokenizers.Split(SEAM, "removed")])
    texts = [text for article in articles for text in (article.context, *(q for q, _ in article.questions))]
    texts += [text.replace("{c}", "").replace("{q}", "") for text in REQUESTS] * 50
    texts += [text.format(a=Word("가나다")) for text in REPLIES] * 50
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL + byte_tokens,
        initial_alphabet=KS_SYLLABLES + [chr(code) for code in range(33, 127)] + list("▁\n“”‘’·…"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = json.loads(tokenizer.to_str())
    # The trainer marks the byte tokens as special; as plain vocabulary, an article that spells "<0x41>" stays text.
    trained["added_tokens"] = [token for token in trained["added_tokens"] if token["content"] in SPECIAL]
    tokenizer = Tokenizer.from_str(json.dumps(trained))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL[4:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def make_model() -> LlamaForCausalLM:
    """Llama with 3.2 million parameters, its attention started so that it can copy.

    Queries start equal to keys and outputs as transposed values (after "Mimetic initialization", Trockman and Kolter,
    2023): a token first looks at its like and passes on what it finds. Without it no copying was learned in 800 steps.
    """
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=6,
            initializer_range=WEIGHT_STD,
            attention_bias=True,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=SPECIAL.index("<s>"),
            eos_token_id=SPECIAL.index("</s>"),
            pad_token_id=SPECIAL.index("<pad>"),
        )
    )
    start_copying(model)
    return model


@torch.no_grad()
def start_copying(model: LlamaForCausalLM) -> None:
    """Set the first attention heads up as an induction circuit (Olsson et al., 2022); training goes on from there.

    Layer 0's first heads look at the previous token (by biases, which RoPE turns into a function of distance) and
    write what they read to a subspace of their own; the first heads of layers 1 and 2 match the current token against that
    subspace and pass on the token they find: "... A B ... A" -> B. The other heads look at their like.
    """
    size = model.config.head_dim
    first, *later = [layer.self_attn for layer in model.model.layers]
    for attention in (first, *later):
        attention.q_proj.weight.copy_(attention.k_proj.weight)
        attention.o_proj.weight.copy_(OUTPUT_SCALE * attention.v_proj.weight.T)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            projection.bias.zero_()
    for layer in model.model.layers:
        layer.mlp.down_proj.weight *= 0.03  # embeddings, not random layers, fill the residual stream at first
    theta = model.config.rope_parameters["rope_theta"] ** (-torch.arange(size // 2) / (size // 2))
    sharp = theta > 0.1  # fast rotations tell neighbours apart
    for head in range(COPY_HEADS):
        rows = slice(head * size, (head + 1) * size)
        first.q_proj.weight[rows] *= 0.1
        first.k_proj.weight[rows] *= 0.1
        key = torch.cat([sharp.float(), torch.zeros(size // 2)])
        query = torch.cat([theta.cos() * sharp, -theta.sin() * sharp])  # turned back by one position
        first.k_proj.bias[rows], first.q_proj.bias[rows] = 6 * key, 6 * query
        read, written = first.v_proj.weight[rows].clone(), torch.randn(size, model.config.hidden_size) * WEIGHT_STD
        first.o_proj.weight[:, rows] = 2 * OUTPUT_SCALE * written.T
        for attention in later[:2]:
            attention.q_proj.weight[rows], attention.k_proj.weight[rows] = 2.5 * read, 2.5 * written


@dataclass(frozen=True)
class Tree:
    """One article read once and its branches: (length,) each; branch 0 is the article."""

    ids: list[int]
    positions: list[int]
    branch: list[int]
    weights: list[float]  # of predicting this token
    pointers: list[tuple[int, list[int]]]  # (where an answer token is predicted, where the article says that token)


def encode_article(tokenizer, article: Article, rng: random.Random) -> Tree:
    """All questions of an article as one sequence whose branches do not see each other."""
    request, context = rng.choice(REQUESTS), plain(article.context)
    prompts = ["<s><|user|>" + plain(request.format(c=context, q=q)) + "</s><|assistant|>" for q, _ in article.questions]
    replies = [plain(rng.choice(REPLIES).format(a=Word(answer))) + "</s>" for _, answer in article.questions]
    prompt_ids = tokenizer(prompts, add_special_tokens=False).input_ids
    reply_ids = tokenizer(replies, add_special_tokens=False).input_ids
    shared = min(shared_length(prompt_ids), len(prompt_ids[0]) - 1)

    def prompt_weights(count: int) -> list[float]:
        return [PROMPT_WEIGHT * (rng.random() < PROMPT_SHARE) for _ in range(count)]

    tree = Tree(prompt_ids[0][:shared], list(range(shared)), [0] * shared, [0.0, *prompt_weights(shared - 1)], [])
    for number, (prompt, reply) in enumerate(zip(prompt_ids, reply_ids, strict=True), start=1):
        answer_ids = tokenizer(article.questions[number - 1][1], add_special_tokens=False).input_ids
        said_at = places(answer_ids, prompt[:shared])
        reply_at = len(tree.ids) + len(prompt) - shared + places(answer_ids, reply)[0] if places(answer_ids, reply) else None
        if said_at and reply_at:
            tree.pointers.extend((reply_at - 1 + i, [at + i for at in said_at]) for i in range(len(answer_ids)))
        tail = prompt[shared:] + reply
        tree.ids.extend(tail)
        tree.positions.extend(range(shared, shared + len(tail)))
        tree.branch.extend([number] * len(tail))
        tree.weights.extend([0.0, *prompt_weights(len(tail) - len(reply) - 1)] + [1.0] * len(reply))
    return tree


def shared_length(sequences: list[list[int]]) -> int:
    """How many tokens all sequences begin with."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def places(part: list[int], whole: list[int]) -> list[int]:
    """Where `part` begins in `whole`."""
    return [at for at in range(len(whole) - len(part) + 1) if whole[at : at + len(part)] == part]


def copy_drill(rng: random.Random) -> Tree:
    """Strings of random tokens, each said several times in random order: what follows is known the second time.

    Nearly every token teaches copying, against one in twenty of an article; articles alone taught none in 800 steps.
    """
    first_token = len(SPECIAL) + 256  # after the byte tokens
    strings = [
        rng.choices(range(first_token, first_token + DRILL_TOKENS), k=rng.randint(3, 8)) for _ in range(rng.randint(4, 10))
    ]
    ids, weights, said = [SPECIAL.index("<s>")], [0.0], set()
    while len(ids) < 180:
        number = rng.randrange(len(strings))
        ids += strings[number]
        weights += [0.0] + [float(number in said)] * (len(strings[number]) - 1)
        said.add(number)
    return Tree(ids, list(range(len(ids))), [0] * len(ids), weights, [])


def collate(trees: list[Tree]) -> dict:
    """Trees packed into rows as long as the longest; the mask is additive, (rows, 1, length, length)."""
    rows: list[list[Tree]] = []
    length = max(len(tree.ids) for tree in trees)
    for tree in sorted(trees, key=lambda tree: -len(tree.ids)):
        row = next((row for row in rows if sum(len(t.ids) for t in row) + len(tree.ids) <= length), None)
        if row is None:
            rows.append(row := [])
        row.append(tree)

    def column(values: Callable[[int, Tree], list], fill) -> torch.Tensor:
        joined = [[value for number, tree in enumerate(row) for value in values(number, tree)] for row in rows]
        return torch.tensor([row + [fill] * (length - len(row)) for row in joined])

    article = column(lambda number, tree: [number] * len(tree.ids), -1)
    branch = column(lambda number, tree: tree.branch, -1)
    pointed = [
        (number, start + query, [start + key for key in keys])
        for number, row in enumerate(rows)
        for start, tree in zip(itertools.accumulate([0] + [len(t.ids) for t in row]), row, strict=False)
        for query, keys in tree.pointers
    ]
    is_target = torch.zeros(len(pointed), length, dtype=torch.bool)
    for index, (_, _, keys) in enumerate(pointed):
        is_target[index, keys] = True
    same_article = article[:, None, :] == article[:, :, None]
    same_branch = (branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == 0)
    visible = same_article & same_branch & torch.ones(length, length, dtype=torch.bool).tril()
    return {
        "ids": column(lambda number, tree: tree.ids, SPECIAL.index("<pad>")),
        "positions": column(lambda number, tree: tree.positions, 0),
        "weights": column(lambda number, tree: tree.weights, 0.0),
        "pointers": (torch.tensor([p[0] for p in pointed]), torch.tensor([p[1] for p in pointed]), is_target),
        "mask": torch.zeros(visible.shape).masked_fill_(~visible, -1e9)[:, None],
    }


def loss_of(model, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """(weighted mean cross-entropy of the tokens, loss of the pointer)."""
    output = model.model(
        input_ids=batch["ids"], position_ids=batch["positions"], attention_mask=batch["mask"], output_hidden_states=True
    )
    # The first token of a branch has no weight, so what predicts a weighted token stands right before it.
    weights = batch["weights"][:, 1:]
    rows, columns = weights.nonzero(as_tuple=True)
    logits = model.lm_head(output.last_hidden_state[rows, columns])  # (targets, vocab)
    losses = torch.nn.functional.cross_entropy(logits, batch["ids"][rows, columns + 1], reduction="none")
    language = (losses * weights[rows, columns]).sum() / weights.sum()
    return language, pointer_loss(model, output.hidden_states[POINTER_LAYER], batch)


def pointer_loss(model, hidden: torch.Tensor, batch: dict) -> torch.Tensor:
    """One head of POINTER_LAYER has to look at the article's own words when an answer token is predicted.

    Supervised attention (Mi et al., 2016): cross-entropy of that head's attention, any place that says the token is
    right. `hidden` is the layer's input, (rows, length, hidden).
    """
    rows, columns, is_target = batch["pointers"]
    layer, size = model.model.layers[POINTER_LAYER], model.config.head_dim
    states = layer.input_layernorm(hidden)
    head = slice(model.config.hidden_size - size, model.config.hidden_size)  # the last one
    queries = torch.nn.functional.linear(states, layer.self_attn.q_proj.weight[head], layer.self_attn.q_proj.bias[head])
    keys = torch.nn.functional.linear(states, layer.self_attn.k_proj.weight[head], layer.self_attn.k_proj.bias[head])
    cos, sin = model.model.rotary_emb(states, batch["positions"])
    queries, keys = apply_rotary_pos_emb(queries[:, None], keys[:, None], cos, sin)  # (rows, 1, length, size)
    scores = (queries[rows, 0, columns][:, None] * keys[rows, 0]).sum(-1) / size**0.5 + batch["mask"][rows, 0, columns]
    attention = scores.log_softmax(-1)  # (pointers, length)
    return -attention.masked_fill(~is_target, -torch.inf).logsumexp(-1).mean()


def train_base(tokenizer, steps: int, seed: int) -> LlamaForCausalLM:
    """AdamW with a cosine schedule; articles grow from 1 fact to 9 while it learns to find and copy."""
    torch.manual_seed(seed)
    model, rng, started = make_model(), random.Random(seed), time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    for step in range(1, steps + 1):
        progress = step / steps
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(step / 200, 0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        most_facts = 1 + round(8 * min(1.0, progress / 0.7))
        language, pointing = loss_of(model, collate(draw_trees(tokenizer, rng, most_facts, progress)))
        (language + POINTER_WEIGHT * pointing).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            print(
                f"step {step}/{steps}  loss {language.item():.3f}  pointer {pointing.item():.3f}  "
                f"facts <= {most_facts}  {time.perf_counter() - started:.0f} s",
                flush=True,
            )
        if step % 200 == 0:
            print(f"    found {found(model, tokenizer, most_facts):.3f} of unseen companies' answers", flush=True)
    return model


def draw_trees(tokenizer, rng: random.Random, most_facts: int, progress: float) -> list[Tree]:
    """One step's articles, about TOKENS_PER_STEP tokens, and in the beginning copy drills beside them."""
    drills = round(TOKENS_PER_STEP / 400 * max(0.0, 1 - progress / DRILL_UNTIL))
    count = TOKENS_PER_STEP // (60 + 70 * most_facts)
    facts = [rng.randint(max(1, most_facts - 3), most_facts) for _ in range(count)]
    articles = [make_article(rng, 2 + number, number, strange=0.2) for number in facts]
    trees = [encode_article(tokenizer, article, rng) for article in articles]
    return (trees[: len(trees) * 2 // 3] if drills else trees) + [copy_drill(rng) for _ in range(drills)]


@torch.inference_mode()
def found(model, tokenizer, facts: int) -> float:
    """Share of answers that the model's replies hold, for held-out names."""
    rng, hits, asked = random.Random(0), 0, 0
    for _ in range(16):
        article = make_article(rng, 3, facts, held_out=True)
        for question, answer in article.questions:
            request = plain(REQUESTS[0].format(c=article.context, q=question))
            text = "<s><|user|>" + request + "</s><|assistant|>"
            prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            reply = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt.input_ids.shape[1] :]
            hits, asked = hits + (answer in tokenizer.decode(reply, skip_special_tokens=True)), asked + 1
    return hits / asked


def write_samples(seed: int) -> None:
    """data/sample/: train, test, the test's answers in a file of their own, and a sample submission with BOM."""
    rng = random.Random(seed)
    train = sample_rows(rng, "TRAIN", articles=TRAIN_ARTICLES, held_out=False)
    test = sample_rows(rng, "TEST", articles=TEST_ARTICLES, held_out=True)
    columns = ("id", "context", "question", "answer")
    write_csv("train.csv", columns, train)
    write_csv("test.csv", columns[:3], [row[:3] for row in test])
    write_csv("test_answers.csv", ("id", "answer"), [(row[0], row[3]) for row in test])
    write_csv("sample_submission.csv", ("id", "answer"), [(row[0], "") for row in test], encoding="utf-8-sig")
    write_dialogues(seed)
    write_wallpaper(seed)


def write_wallpaper(seed: int) -> None:
    """wallpaper_train.csv (2 questions and 5 answers a row), wallpaper_test.csv and its answers in a file of their own."""
    rows = make_rows(WALLPAPER_ROWS + WALLPAPER_TEST, seed)
    train, test = rows[:WALLPAPER_ROWS], make_test(rows[WALLPAPER_ROWS:])
    write_csv("wallpaper_train.csv", tuple(train[0]), [tuple(row.values()) for row in train])
    write_csv("wallpaper_test.csv", ("id", "질문"), [row[:2] for row in test], encoding="utf-8-sig")
    golds = [(name, json.dumps(answers, ensure_ascii=False)) for name, _, answers in test]
    write_csv("wallpaper_test_answers.csv", ("id", "answers"), golds)


def write_dialogues(seed: int) -> None:
    """dialogue_train.json, dialogue_test.json and its answers in a file of their own."""
    dialogues = make_dialogues(seed)
    train, test = numbered(dialogues[TEST_DIALOGUES:], "train"), numbered(dialogues[:TEST_DIALOGUES], "test")
    letters = [(item["id"], LETTERS[INFERENCES.index(item["output"])]) for item in test]
    for name, items in (("train", train), ("test", [{**item, "output": ""} for item in test])):
        text = json.dumps(items, ensure_ascii=False, indent=4) + "\n"
        (SAMPLE_DIR / f"dialogue_{name}.json").write_text(text, encoding="utf-8")
    write_csv("dialogue_test_answers.csv", ("id", "answer"), letters)


def sample_rows(rng: random.Random, prefix: str, articles: int, held_out: bool) -> list[tuple[str, str, str, str]]:
    """(id, context, question, answer) of `articles` articles with 2 to 6 questions each."""
    rows = []
    for _ in range(articles):
        article = make_article(rng, rng.randint(2, 6), rng.randint(6, 9), held_out=held_out)
        for question, answer in article.questions:
            rows.append((plain(article.context), plain(question), answer))
    width = 5 if prefix == "TRAIN" else 4
    return [(f"{prefix}_{number:0{width}d}", *row) for number, row in enumerate(rows)]


def write_csv(name: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], encoding: str = "utf-8") -> None:
    """A file of data/sample/."""
    with (SAMPLE_DIR / name).open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def main(argv: list[str] | None = None) -> None:
    """Write data/sample/ and, without --data, data/demo_model/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="store_true", help="only data/sample/; leave data/demo_model/ as it is")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps of the base (default: {STEPS})")
    parser.add_argument("--seed", type=int, default=42, help="of articles and weights (default: 42)")
    arguments = parser.parse_args(argv)
    SAMPLE_DIR.mkdir(parents=True, exist_ok=True)
    write_samples(arguments.seed)
    if arguments.data:
        return
    rng = random.Random(1)  # the tokenizer is the same for every seed
    tokenizer = make_tokenizer([make_article(rng, 12, 9) for _ in range(5000)])
    model = train_base(tokenizer, arguments.steps, arguments.seed)
    tokenizer.save_pretrained(MODEL_DIR)
    model.half().save_pretrained(MODEL_DIR)  # 16 bit: half the download; it is loaded as float32 on CPU


if __name__ == "__main__":
    main()
