"""Task files of lm-eval: which are data, and what in others would run code."""

from pathlib import Path

import pytest

from workers.config.base import InputError
from workers.train.evaluation.task_files import check_task_files

PYTHON = "has a template that may reach Python"
METRICS = frozenset({"acc", "exact_match"})
GOOD = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
output_type: multiple_choice
doc_to_text: "{{question.strip() | upper}}{% for one in choices %} {{one}}{% endfor %}"
doc_to_target: "{{choices[label]}}"
doc_to_choice: ["{{a.split(' ')[0]}}", b]
metric_list: [{metric: acc, aggregation: mean}]
unsafe_code: false
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "own").mkdir()
    return tmp_path / "tasks"


def check(folder: Path) -> None:
    check_task_files(folder, folder.parent / "own", METRICS)


def test_what_is_data_alone_is_let_through(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "base.yaml").write_text(GOOD)
    (folder.parent / "own" / "theirs.yaml").write_text("doc_to_text: !function theirs.text\n")
    for number, included in enumerate(("sub/base.yaml", "../own/theirs.yaml")):
        (folder / f"{number}.yml").write_text(f"include: {included}\ntask: t{number}\n")
    check(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("process_docs: !function utils.docs", "has !function utils.docs"),
        ("metric_list: [{metric: !function m.own}]", "has !function m.own"),
        ("class: utils.Task", "has class"),
        ("metric_list: [{metric: acc, hf_evaluate: true}]", "has hf_evaluate"),
        ("metric_list: [{metric: ./own}]", "has the metric './own', which is none of lm-eval's"),
        ("unsafe_code: true", "has unsafe_code"),
        ("dataset_kwargs: {trust_remote_code: true}", "has trust_remote_code"),
        ("use_prompt: promptsource:any", "has use_prompt"),
        ("? !function m.own\n: 1", "has !function m.own"),
        ("include: ../elsewhere.yaml", "includes ../elsewhere.yaml, which is no YAML file of"),
        ("include: [/etc/elsewhere.yaml]", "includes /etc/elsewhere.yaml, which is no YAML file"),
        ("include: unread.txt", "includes unread.txt, which is no YAML file of the folder"),
        (
            "doc_to_text: '{{ cycler.__init__.__globals__.os.popen(1) }}'",
            "has a template that may reach Python",
        ),
        ("doc_to_text: '{{ a.__class__ }}'", PYTHON),
        ("doc_to_text: '{{ cycler[a][b].os.replace(c, d) }}'", PYTHON),
        ("doc_to_text: '{% for x in y %}{{ loop[a] }}{% endfor %}'", PYTHON),
        ("doc_to_text: '{{ (a | attr(b))(c) }}'", PYTHON),
        ("doc_to_text: '{{ (a | attr(b) | attr(c)).find(d) }}'", PYTHON),
        ("doc_to_text: '{{ image[a][b].os.replace(c, d) }}'", PYTHON),
        ("doc_to_choice: ['{{ a[b][c]() }}']", PYTHON),
        ("description: '{% if x.system(1) %}{% endif %}'", PYTHON),
        ("fewshot_config: {doc_to_text: '{{ range(3) }}'}", PYTHON),
    ],
)
def test_what_would_run_code_is_refused(text: str, said: str, folder: Path) -> None:
    (folder / "unread.txt").write_text("doc_to_text: !function m.own\n")
    (folder / "task.yaml").write_text(f"task: t\n{text}\n")
    with pytest.raises(InputError) as caught:
        check(folder)
    assert str(caught.value).startswith(f"{folder / 'task.yaml'}: {said}")
    assert str(caught.value).endswith("which runs code; allow it with --run-task-code")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: [", "cannot be read as YAML"),
        ("task: !!python/object/apply:os.system [ls]", "cannot be read as YAML"),
        ("doc_to_text: '{{ a'", "has a wrong template"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(text: str, said: str, folder: Path) -> None:
    (folder / "task.yaml").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        check(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_tasks_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="holds no YAML file"):
        check(folder)
