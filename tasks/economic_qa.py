"""Economic QA: short answers to questions about economic news (Inha 2024)."""

from dandap.data.korean import KINDS, question_kind
from dandap.data.read import read_questions
from dandap.data.rows import Row
from tasks.submission import submission_form
from tasks.task import PageForm, Task


class EconomicQA(Task):
    """Questions about articles, in tables or SQuAD-like JSON."""

    name = "economic_qa"
    needs = ("context", "question")
    page = PageForm(sample_file="data/sample/test.csv")
    sample = Row(
        "sample",
        "한빛전자는 올해 1분기 매출 1,240억 원을 기록했다.",
        "한빛전자의 올해 1분기 매출은?",
        ("1,240억 원",),
    )

    def read(self, paths, columns, need_answers):
        return read_questions(paths, columns, need_answers)

    def kind(self, row):
        kind = question_kind(row.question)
        return f"{KINDS[kind]} ({kind})"

    def submission_form(self, test_file, rows):
        return submission_form(test_file, [row.id for row in rows])

    def submit(self, recipe, folder, test_file, answers, form):
        import pandas as pd  # 0.4 s

        path, _ = super().submit(recipe, folder, test_file, answers, form)
        # With pandas' defaults, "NA" is a missing value.
        lost = pd.read_csv(path, encoding="utf-8-sig").iloc[:, 1].isna().sum()
        note = f"{lost} answers are empty or read as missing by pandas (NA): see review.csv"
        return path, note if lost else None


TASK = EconomicQA()
