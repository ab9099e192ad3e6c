"""Laws of the report: one file, equal input equal bytes, every number with its source, nothing unescaped."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluation.run_folder import alone_recipe, build_run, evaluation, recipe_of

from distill.config.recipe import Recipe
from distill.errors import DistillError
from distill.evaluation.report import write_report
from distill.files import read_json, write_json, write_jsonl


def render(folder: Path, recipe: Recipe) -> str:
    write_report(folder, recipe, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def words(page: str) -> str:
    """The page's text with single spaces, without tags and style."""
    page = re.sub(r"<style>.*?</style>|<title>.*?</title>", "", page, flags=re.S)
    return " ".join(re.sub(r"<wbr>|<[^>]*>", lambda tag: "" if tag[0] == "<wbr>" else " ", page).split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results" / "demo"


def test_every_figure_is_there_with_its_source(folder: Path) -> None:
    recipe = recipe_of(["sft", "polish"])
    page = words(render(build_run(folder, recipe), recipe))
    summary = read_json(folder / "summary.json")
    for name in ("teacher", "student", "sft", "polish"):
        assert f"{100 * summary['models'][name]['exact_match']:.1f}%" in page
        assert f"{summary['models'][name]['nll']:.3f}" in page
        assert f"results/demo/evaluation/{name}.json" in page
    for stage in ("sft", "polish"):
        assert f"{100 * summary['stages'][stage]['gap_recovered']:.1f}%" in page
        assert f"results/demo/students/{stage}/metrics.jsonl" in page
        assert f"results/demo/students/{stage}/final.json" in page
    for file in ("summary.json", "dataset/ledger.json", "completions/*.parquet", "compatibility.json",
                 "recipe.yaml", "prompts/index.json"):  # fmt: skip
        assert f"results/demo/{file}" in page
    assert "does not add up" not in page


def test_equal_input_gives_equal_bytes_wherever_it_lies(tmp_path: Path) -> None:
    recipe = recipe_of(["sft"])
    pages = [render(build_run(tmp_path / place / "results" / "demo", recipe), recipe) for place in ("a", "b")]
    assert pages[0] == pages[1]
    assert str(tmp_path) not in pages[0]


def test_the_page_is_whole_in_itself(folder: Path) -> None:
    recipe = recipe_of(["sft"])
    page = render(build_run(folder, recipe), recipe)
    assert "//" not in page.replace("results//", "")  # no address with a host, not even one without its scheme
    assert not re.search(r"<(script|img|iframe|object|embed|base)\b|@import", page)
    links = re.findall(r'(?:href|src|srcset|data|action)="([^"]*)"|url\(([^)]*)\)', page)
    assert all(link.startswith(("#", "data:")) for pair in links for link in pair if link)
    assert len(page.encode()) < 1_000_000


def test_ids_are_unique_and_every_reference_meets_one(folder: Path) -> None:
    recipe = recipe_of(["sft", "polish"])
    page = render(build_run(folder, recipe), recipe)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page)) <= {(i, "") for i in ids} | {("", i) for i in ids}


def test_without_a_teacher_and_prompts_it_tells_of_neither(folder: Path) -> None:
    recipe = alone_recipe()
    page = words(render(build_run(folder, recipe), recipe))
    assert "student learned from answers that were there: published.jsonl." in page
    assert re.search(r"gives exactly the reference answer [\d.]+% of the time; before, it was 2\.\d%\.", page)
    assert "sft: the recipe has no teacher to measure the gap by." in page
    assert not re.search(r"None|Completions|Compatibility|Prompts read|the teacher’s|is the teacher", page)
    assert f"{100 * read_json(folder / 'summary.json')['models']['sft']['exact_match']:.1f}%" in page


def test_hostile_text_stays_text(folder: Path) -> None:
    recipe = recipe_of(["sft"], title="<b>$x^$ & more")
    evil = "</td><script>alert('1')</script><img src=x onerror=alert(1)>\x00\u202e{{ 7 * 7 }}"
    build_run(folder, recipe, wrong=lambda word: evil)
    page = render(folder, recipe)
    assert "&lt;script&gt;" in page
    assert "{{ 7 * 7 }}" in page

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list) -> None:
            assert tag not in ("script", "img")
            assert not any(name.startswith("on") for name, _ in attributes)

    Tags().feed(page)


def test_without_an_evaluation_the_page_says_so_and_ignores_stale_scores(folder: Path) -> None:
    build_run(folder, recipe_of(["sft"]))
    page = words(render(folder, recipe_of(["sft"], evaluated=False)))
    assert "the recipe has no evaluation: section" in page
    assert "Gap recovered" not in page
    assert "loss" in page


def test_a_gap_that_means_nothing_is_shown_with_its_reason(folder: Path) -> None:
    recipe = recipe_of(["sft"])
    page = words(render(build_run(folder, recipe, hit=lambda name: 0.5 if name == "sft" else 1.0), recipe))
    assert "teacher (1) is not better than student before (1): no gap to recover" in page


def test_without_exact_match_the_headline_is_the_nll(folder: Path) -> None:
    recipe = recipe_of(["sft"])
    build_run(folder, recipe)
    for file in (folder / "evaluation").iterdir():
        write_json(file, read_json(file) | {"exact_match": None, "correct": None})
    page = words(render(folder, recipe))
    assert "nats a token" in page
    assert "Exact match Higher is better" not in page


def test_only_answers_with_a_reference_are_counted(folder: Path) -> None:
    recipe = recipe_of(["sft"])
    build_run(folder, recipe)
    file = folder / "evaluation" / "sft.json"
    found = read_json(file)
    for answer in found["answers"][:100]:
        answer |= {"correct": None, "reference": None}
    right = sum(bool(answer["correct"]) for answer in found["answers"])
    write_json(file, found | {"correct": right, "exact_match": right / 400})
    assert f"exact match, {right} of 400" in words(render(folder, recipe))


def test_a_model_beside_teacher_and_student_is_shown_too(folder: Path) -> None:
    recipe = recipe_of(["sft"])
    build_run(folder, recipe)
    write_json(folder / "evaluation" / "peer.json", evaluation("peer", 0.5))
    summary = read_json(folder / "summary.json")
    summary["models"]["peer"] = {"exact_match": 0.5, "nll": 0.8}
    write_json(folder / "summary.json", summary)
    assert "results/demo/evaluation/peer.json" in words(render(folder, recipe))


def test_a_ledger_without_drops_and_one_that_does_not_add_up(folder: Path) -> None:
    recipe = recipe_of(["sft"])
    build_run(folder, recipe)
    ledger = read_json(folder / "dataset" / "ledger.json")
    ledger["prompts"] = {"read": 0, "kept": 0, "dropped": {}}
    ledger["samples"] = {"asked": 0, "kept": 0, "dropped": {}}
    write_json(folder / "dataset" / "ledger.json", ledger)
    page = words(render(folder, recipe))
    assert page.count("nothing was dropped") == 2
    assert page.count("✓ adds up") == 2
    ledger["samples"] = {"asked": 10, "kept": 7, "dropped": {"length": 2}}
    write_json(folder / "dataset" / "ledger.json", ledger)
    assert "✗ does not add up" in words(render(folder, recipe))


@pytest.mark.parametrize("losses", [[], [2.0], [float("nan")] * 3, [0.0, 0.0], [1.0] * 5000])
def test_odd_logs_still_give_a_page(folder: Path, losses: list[float]) -> None:
    recipe = recipe_of(["sft"])
    build_run(folder, recipe)
    rows = [{"step": i, "loss": loss, "learning_rate": 0.0} for i, loss in enumerate(losses, 1)]
    write_jsonl(folder / "students" / "sft" / "metrics.jsonl", rows)
    page = render(folder, recipe)
    assert ("there is no curve to draw" in page) == (len([x for x in losses if x == x]) < 2)
    assert ("mean of 17 logged steps" in page) == (len(losses) == 5000)
    assert len(page.encode()) < 1_000_000


def test_disk_use_is_told_part_by_part(folder: Path) -> None:
    recipe = recipe_of(["sft"])
    build_run(folder, recipe)
    (folder / "work/samples").mkdir(parents=True)
    (folder / "work/samples/0000.jsonl").write_bytes(b"x" * 2_340_000)
    page = words(render(folder, recipe))
    assert "results/demo/work 2.3 MB" in page
    assert "results/demo/completions 0." in page


def test_a_promised_file_that_is_gone_is_named(folder: Path) -> None:
    recipe = recipe_of(["sft"])
    build_run(folder, recipe)
    (folder / "summary.json").unlink()
    with pytest.raises(DistillError, match=r"summary\.json does not exist"):
        write_report(folder, recipe, folder / "report.html")
    assert not (folder / "report.html").exists()
