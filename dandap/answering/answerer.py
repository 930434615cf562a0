"""Answer with token trees, by choices, or with transformers' generate if prompts cannot branch."""

import math
from collections.abc import Container, Iterator

from peft import PeftModel
from transformers import PreTrainedModel

from dandap.answering.answer import Answer, Decoding, find_span
from dandap.answering.branch_check import why_no_tree
from dandap.answering.choices import choices_of, encode_choices, score_choices
from dandap.answering.generate import generate_answers
from dandap.answering.grounding import Grounding
from dandap.answering.tree_decoder import answer_examples
from dandap.data.encode import Encoder, Example
from dandap.errors import InputError
from dandap.model.memory import READ_TOKENS, Plan
from dandap.recipe import Recipe

Answered = Iterator[tuple[int, list[Answer]]]  # index of the example, its answers


class Answerer:
    """Answers questions with one model; checks once whether its prompts can branch."""

    def __init__(
        self, recipe: Recipe, encoder: Encoder, model: PreTrainedModel | PeftModel, plan: Plan
    ):
        self.recipe, self.encoder, self.model = recipe, encoder, model
        self.tokens_per_batch = plan.tokens_per_batch
        self.decoding = Decoding(
            stop_ids=encoder.stop_ids(model.generation_config),
            pad_id=encoder.tokenizer.pad_token_id,
            max_new_tokens=recipe.max_new_tokens,
            samples=recipe.samples,
            temperature=recipe.temperature,
            seed=recipe.seed,
            beams=recipe.beams,
            repetition_penalty=recipe.repetition_penalty,
        )
        self.grounding = (
            Grounding(encoder.tokenizer, encoder.control_ids) if recipe.grounded else None
        )
        self.cannot_branch = why_no_tree(model, self.decoding)
        self.why_no_tree = f"beams={recipe.beams}" if recipe.beams > 1 else self.cannot_branch
        self._warned = False

    def check(self, examples: list[Example]) -> None:
        """Reject options that this model does not support, before hours of work."""
        if self.why_no_tree:
            options = {
                "samples": self.recipe.samples > 1,
                "temperature": self.recipe.temperature > 0,
                "grounded": self.recipe.grounded,
                "choices": any(choices_of(example, self.recipe) for example in examples),
            }
            if wanted := [name for name, is_wanted in options.items() if is_wanted]:
                raise InputError(
                    f"{', '.join(wanted)}: not supported, because this model's prompts cannot "
                    f"branch ({self.why_no_tree}). Remove these options."
                )
        # Check the template and tokenizer with the first question's choices.
        encode_choices(self.encoder, examples[:1], self.recipe)

    def answers(
        self, examples: list[Example], known: Container[str] = ()
    ) -> Iterator[tuple[Example, list[Answer]]]:
        """Yield (example, its samples) as batches finish; skip examples with known ids."""
        self.check(examples)
        if not self._warned:
            self._warned = True
            if self.why_no_tree:
                print(f"answering each question separately with generate ({self.why_no_tree})")
            if self.recipe.samples > 1 and not self.recipe.temperature:
                print("WARNING: samples are identical at temperature 0. Add --temperature 0.7.")
        done = {index for index, example in enumerate(examples) if example.row.id in known}
        if self.why_no_tree:
            answered = self._by_generate(examples, done)
        elif any(choices_of(example, self.recipe) for example in examples):
            answered = self._by_choice(examples, done)
        else:
            answered = self._by_trees(examples, done)
        for index, answers in answered:
            for answer in answers:
                if not math.isfinite(answer.log_probability):
                    raise InputError(
                        f"question {examples[index].row.id}: the model's logits are not finite in "
                        f"{self.model.dtype}. Use --compute_dtype float32."
                    )
                answer.span = find_span(answer.text, examples[index].context)
            yield examples[index], answers

    def _by_trees(self, examples: list[Example], done: set[int]) -> Answered:
        text_of = self.grounding.text if self.grounding else self.encoder.decode
        for index, answers in answer_examples(
            self.model, examples, self.decoding, self.tokens_per_batch, self.grounding, done
        ):
            for answer in answers:
                answer.text = text_of(answer.content_ids)
            yield index, answers

    def _by_generate(self, examples: list[Example], done: set[int]) -> Answered:
        prompts = [list(example.prompt_ids) for example in examples]
        # generate reads all prompts of a batch at once.
        tokens = min(self.tokens_per_batch, READ_TOKENS)
        for index, answer in generate_answers(self.model, prompts, self.decoding, tokens, done):
            answer.text = self.encoder.decode(answer.content_ids)
            yield index, [answer]

    def _by_choice(self, examples: list[Example], done: set[int]) -> Answered:
        """Select the most probable of each question's choices."""
        ids = encode_choices(self.encoder, examples, self.recipe)
        for index, scores in score_choices(
            self.model, examples, ids, self.decoding.pad_id, self.tokens_per_batch, done
        ):
            texts = choices_of(examples[index], self.recipe)
            best = max(range(len(scores)), key=scores.__getitem__)
            chosen = ids[index][best]
            # Scores are sums, an answer's log-probability is a mean.
            mean = scores[best] / len(chosen)
            by_choice = dict(zip(texts, scores, strict=True))
            yield index, [Answer(chosen, True, mean, texts[best], choices=by_choice)]
