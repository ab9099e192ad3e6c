"""A recipe is right as a whole before anything runs, and what is wrong is said in one line."""

import copy
from pathlib import Path

import pytest
import yaml

from distill.config.reading import load_recipe, read_recipe
from distill.config.recipe import Recipe
from distill.errors import DistillError

RECIPE = {
    "run": "test",
    "models": {"teacher": {"source": "org/teacher"}, "student": {"source": "org/student"}},
    "prompts": {"source": "prompts.jsonl"},
    "stages": {"sft": {"init": "student", "steps": 10}},
}


def changed(path: str, value: object) -> dict:
    """RECIPE with the setting at a dotted path replaced."""
    recipe = copy.deepcopy(RECIPE)
    *parents, name = path.split(".")
    node = recipe
    for parent in parents:
        node = node.setdefault(parent, {})
    node[name] = value
    return recipe


JUDGE = {"endpoint": "http://localhost:1", "model": "m", "prompt": "{{ completion }}"}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("promts", {}, "promts is not a setting (did you mean prompts?)"),
        ("prompts.batchsize", 3, "prompts.batchsize is not a setting (did you mean batch_size?)"),
        ("stages.sft.lerning_rate", 1, "stages.sft.lerning_rate is not a setting (did you mean learning_rate?)"),
        ("generation.sampling.temprature", 1, "did you mean temperature?"),
        ("student", "pupil", "student: pupil is not among models"),
        ("stages.sft.init", "studnet", "studnet is neither a model nor a stage (did you mean student?)"),
        ("stages.sft.init", "sft", "stages form a cycle: sft → sft"),
        ("resources.generate.gpus", 4, "resources.generate.gpus is not a setting"),
        ("resources.evaluate.kind", "gpu h100", "resources.evaluate.kind is 'gpu h100'"),
        ("resources.train", {"tasks": 3, "nodes": 2}, "tasks (3) must be a multiple of nodes (2)"),
        ("storage.work", "hf://org/work", "storage.work: 'hf://org/work' is no place: a folder, gs://bucket/folder or"),
        ("storage.work", "s3://key:word@bucket/work", "storage.work: credentials go into the environment"),
        ("stages.teacher", {"init": "student", "steps": 1}, "teacher: both a model and a stage"),
        ("stages.sft", {"init": "student", "steps": 9, "objective": "aligned_logits", "packing": True},
         "objective aligned_logits: a row is two texts of different lengths: leave packing out"),
        ("stages.sft", {"init": "student", "steps": 9, "objective": "aligned_logits", "loss_on": "assistant"},
         "objective aligned_logits aligns the last turn: loss_on must be completion"),
        ("stages.sft", {"init": "student", "steps": 9, "objective": "aligned_logits", "hidden_states": {}},
         "objective aligned_logits does not use hidden_states: remove it"),
        ("stages.sft", {"init": "student", "steps": 9, "objective": "topk_logits", "temperature": 2},
         "objective topk_logits does not use temperature: remove it"),
        ("stages.sft", {"init": "student", "steps": 9, "objective": "topk_logits", "loss_on": "assistant"},
         "stages.sft.loss_on: logits are stored for the last turn, take completion"),
        ("stages.sft", {"init": "student", "steps": 9, "objective": "topk_logits", "thoughts": "context"},
         "stages.sft.thoughts: stored logits are of every token of an answer"),
        ("stages.sft.alpha", 0.5, "objective sft does not use alpha: remove it"),
        ("stages.sft", {"init": "student", "steps": 9, "objective": "logits", "temperature": 0},
         "stages.sft.temperature: 0 must be above 0: scores are divided by it"),
        ("stages.sft", {"init": "student", "steps": 9, "objective": "logits", "temperature": {"start": 2, "end": 0}},
         "stages.sft.temperature: 0 must be above 0: scores are divided by it"),
        ("stages.sft", {"init": "student", "steps": 9, "objective": "logits", "beta": 0.3},
         "forward_kl does not use beta"),
        ("stages.sft", {"init": "student", "steps": 9, "objective": "logits", "teacher": "techer"},
         "stages.sft.teacher: techer is not among models (did you mean teacher?)"),
        ("stages.sft.data", "generatd", "'generatd' is neither generated nor original (did you mean generated?)"),
        ("stages.sft.data", [{"sorce": "a.jsonl"}], "data.0.sorce is not a setting (did you mean source?)"),
        ("stages.sft.data", [{"source": "original", "split": "test"}], "original is made by the recipe"),
        ("stages.sft.data", [{"source": "original"}, {"source": "./a.jsonl", "weight": 2}], "original has no weight"),
        ("stages.sft.micro_batch_size", 3, "micro_batch_size (3) must divide batch_size (8)"),
        ("stages.sft.mesh", {"data": -1, "fsdp": -1}, "data and fsdp are both -1: one axis can take what is left"),
        ("stages.sft.mesh", {"tensor": 0}, "tensor is 0: give 1 or more devices, or -1"),
        ("stages.sft.lora", {"rnk": 8}, "stages.sft.lora.rnk is not a setting (did you mean rank?)"),
        ("stages.sft", {"init": "student", "steps": 9, "optimizer": "adafactor", "beta1": 0.8}, "does not use beta1"),
        ("stages.sft.select", "best", "select: best needs held_out"),
        ("stages", {"a": {"init": "student", "steps": 1, "seeds": [0]}, "b": {"init": "a", "steps": 1, "seeds": [1]}},
         "stages.b.seeds: a has seeds, and a stage for each: leave these out"),
        ("stages.sft.epochs", 1, "give either steps or epochs"),
        ("stages.sft.warmup_steps", 10, "warmup_steps (10) must be smaller than steps (10)"),
        ("run", "a/b", "run: 'a/b' must be a plain name"),
        ("run", "models", "`models` is the folder that all runs share"),
        ("generation.max_prefill_length", 2048, "must be smaller than max_target_length (2048)"),
        ("generation.sampling", {"strategy": "topk"}, "strategy topk needs top_k"),
        ("generation.sampling", {"strategy": "weighted", "top_p": 0.9}, "strategy weighted does not use top_p"),
        ("generation.sampling", {"temperature": 0}, "generation.sampling.temperature is 0: input should be greater"),
        ("prompts.num_batches", 0, "must be 1 or more, or `all`"),
        ("models.teacher.dtype", "float8", "models.teacher.dtype is 'float8'"),
        ("prompts", {"batch_size": 3}, "source is missing: name a dataset, or several in mix"),
        ("prompts.mix", [{"source": "a"}], "each source of mix has settings of its own: move source there"),
        ("prompts", {"source": "x", "turns": "each_own", "overlong": "fail"}, "overlong: fail does not go with turns"),
        ("prompts", {"source": "x", "turns": "each_own", "filters": {"min_tokens": 3}}, "filters.min_tokens does not"),
        ("prompts", {"source": "x", "turns": "each_own", "chat_template": "none"}, "none writes no history, which"),
        ("prompts.filters", {"match": "("}, "'(' is no regular expression"),
        ("publish.targets", {"x": {"to": "acme/set"}}, "'acme/set' is no place: hf://owner/name, gs://bucket/folder"),
        ("publish.targets", {"x": {"to": "hf://acme"}}, "'hf://acme' is no repository: hf://owner/name"),
        ("publish.targets", {"x": {"to": "s3://key:word@b/c"}}, "credentials go into the environment"),
        ("publish.targets", {"x": {"to": "gs://b", "what": "stf"}}, "stf is neither the dataset nor a stage (did you"),
        ("publish", {"remove_local": True}, "remove_local: no target has the dataset"),
        ("publish.targets", {"a/b": {"to": "gs://b"}}, "publish target 'a/b': a name has letters"),
        ("dataset.verifier", {"name": "exact_match"}, "dataset.verifier needs prompts.reference"),
        ("dataset.best", {"by": "judge"}, "best.by: judge needs `judge`: its endpoint, model and prompt"),
        ("dataset.judge", JUDGE, "judge: nothing depends on it: set best.by to judge, or judge.min_score"),
        ("dataset.judge", JUDGE | {"prompt": "{{ answer }}"}, "answer is unknown: there is messages, completion and"),
        ("dataset.judge", JUDGE | {"prompt": "{{ messages }}"}, "it never writes the completion"),
        ("dataset.judge", JUDGE | {"prompt": "{% if"}, "line 1 is no Jinja"),
        ("dataset.judge", JUDGE | {"score": "[0-9]+"}, "'[0-9]+' must have one group, the number"),
        ("dataset.judge", JUDGE | {"bounds": [5, 5]}, "bounds: 5 is not below 5"),
        ("dataset.judge", JUDGE | {"endpoint": "http://a:b@c"}, "the key goes into DISTILL_JUDGE_API_KEY"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_remedy(path: str, value: object, said: str) -> None:
    with pytest.raises(DistillError) as error:
        load_recipe(changed(path, value))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


ALONE = {
    "run": "test",
    "models": {"student": {"source": "org/student"}},
    "stages": {"sft": {"init": "student", "steps": 10, "data": [{"source": "qa.jsonl"}]}},
}
"""A recipe without teacher and prompts."""


def test_a_recipe_needs_neither_teacher_nor_prompts() -> None:
    recipe = load_recipe(ALONE)
    assert (recipe.teacher, recipe.prompts, recipe.reader) == (None, None, "student")
    assert Recipe.model_validate_json(recipe.model_dump_json(exclude_defaults=True)) == recipe
    own = load_recipe(ALONE | {"prompts": {"source": "p.jsonl"}, "dataset": {"completions": "own"}})
    assert (own.teacher, own.reader) == (None, "student")
    asked = {"init": "student", "steps": 1, "data": [{"source": "qa.jsonl"}], "objective": "logits"}
    teacher = {"models": ALONE["models"] | {"big": {"source": "org/big"}}, "stages": {"kd": asked}}
    assert load_recipe(ALONE | teacher | {"teacher": "big"}).teacher_of("kd") == "big"
    assert load_recipe(ALONE | teacher | {"stages": {"kd": asked | {"teacher": "big"}}}).teacher is None


def test_the_recipe_that_the_documentation_calls_whole_is_one(root: Path) -> None:
    section = (root / "docs/training.md").read_text().split("## Without a teacher")[1]
    recipe = load_recipe(yaml.safe_load(section.split("```yaml")[1].split("```")[0]))
    assert (recipe.teacher, recipe.prompts, list(recipe.stages)) == (None, None, ["sft"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": "techer"}, "teacher: techer is not among models"),
        ({"prompts": {"source": "p.jsonl"}}, "teacher is not among models (there is student), and prompts are there"),
        ({"prompts": {"source": "p.jsonl"}, "models": {"student": {"source": "s"}, "teahcer": {"source": "t"}}},
         "teacher is not among models (did you mean teahcer?)"),
        ({"stages": {"sft": {"init": "student", "steps": 1}}},
         "stages.sft.data: generated comes of the recipe's prompts, and it has none: add prompts, or name a published"),
        ({"stages": {"sft": {"init": "student", "steps": 1, "data": "original"}}},
         "stages.sft.data: original comes of the recipe's prompts"),
        ({"stages": {"kd": {"init": "student", "steps": 1, "data": [{"source": "q"}], "objective": "logits"}}},
         "stages.kd: objective logits needs a teacher's logits: name one among models, in `teacher`"),
        ({"stages": {"kd": {"init": "student", "steps": 1, "data": [{"source": "q"}], "objective": "topk_logits"}}},
         "stages.kd: objective topk_logits needs a teacher's logits"),
        ({"publish": {"targets": {"x": {"to": "gs://b"}}}},
         "publish.targets.x.what: without prompts the recipe makes no dataset: name a stage"),
        ({"dataset": {"keep_length": True}}, "dataset.keep_length: without prompts the recipe makes no dataset: rem"),
        ({"comparison": {"baseline": "sft"}}, "comparison measures how far arms go towards the teacher, and there is"),
        ({"models": {"student": {"derive": {"from": "big", "heads": 2}}, "big": {"source": "org/big"}}},
         "models.student.derive: heads and neurons are judged on prompts, and there are none"),
    ],
)  # fmt: skip
def test_what_needs_a_teacher_or_prompts_says_so(changes: dict, said: str) -> None:
    with pytest.raises(DistillError) as error:
        load_recipe(ALONE | changes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_stored_logits_are_of_one_answer_to_a_prompt() -> None:
    own = {"prompts": {"source": "p.jsonl", "duplicates": "keep"}, "dataset": {"completions": "own"}}
    asked = {"stages": {"kd": {"init": "student", "steps": 1, "objective": "topk_logits"}}, "teacher": "student"}
    with pytest.raises(DistillError, match="keep leaves several answers to a prompt"):
        load_recipe(ALONE | own | asked)
    assert load_recipe(ALONE | own | asked | {"prompts": {"source": "p.jsonl"}})
    asked["stages"]["kd"]["data"] = [{"source": "qa.jsonl"}]
    assert load_recipe(ALONE | own | asked)


def test_greedy_samples_of_one_prompt_would_be_equal() -> None:
    with pytest.raises(DistillError, match="num_generations must be 1"):
        load_recipe(changed("generation", {"num_generations": 2, "sampling": {"strategy": "greedy"}}))


def test_all_faults_are_in_one_error() -> None:
    recipe = changed("promts", {}) | {"run": "a/b"}
    del recipe["models"]
    with pytest.raises(DistillError) as error:
        load_recipe(recipe)
    for part in ("promts", "a/b", "models is missing"):
        assert part in str(error.value)


def test_stages_may_build_on_each_other() -> None:
    recipe = load_recipe(changed("stages.again", {"init": "sft", "data": "original", "epochs": 1}))
    assert recipe.lineage("again") == ["again", "sft"]
    with pytest.raises(DistillError, match="cycle: again → sft → again"):
        load_recipe(changed("stages", {"again": {"init": "sft", "steps": 1}, "sft": {"init": "again", "steps": 1}}))


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(RECIPE).run = "other"


def test_two_models_of_one_name_have_folders_of_their_own() -> None:
    ids = {load_recipe(changed("models.teacher", model)).models["teacher"].id8 for model in (
        {"source": "org/teacher"}, {"source": "org/teacher", "revision": "abc"},
        {"source": "org/teacher", "dtype": "bfloat16"}, {"source": "org/other"},
    )}  # fmt: skip
    assert len(ids) == 4


def test_the_default_recipe_is_valid_and_every_setting_in_it_is_known(root: Path) -> None:
    recipe = read_recipe(root / "config.yaml")
    assert recipe.run == "demo"
    assert (recipe.teacher, recipe.student) == ("teacher", "student")


@pytest.mark.parametrize(
    ("text", "said"), [("run: [", "is not YAML"), ("- run", "is not a mapping"), ("", "is not a mapping")]
)
def test_a_recipe_that_is_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(DistillError, match=said):
        read_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(DistillError, match="does not exist"):
        read_recipe(tmp_path / "none.yaml")


def test_every_recipe_in_the_repository_is_valid(root: Path) -> None:
    for path in sorted((root / "recipes").glob("*.yaml")):
        assert read_recipe(path).run == path.stem
        assert yaml.safe_load(path.read_text())["run"] == path.stem


def test_a_stage_with_seeds_is_a_stage_for_each(tmp_path: Path) -> None:
    stages = {
        "sft": {"init": "student", "steps": 10, "seeds": [0, 7]},
        "original": {"init": "sft", "steps": 5, "data": "original"},
        "other": {"init": "student", "steps": 5},
    }
    recipe = load_recipe(RECIPE | {"stages": stages})
    found = {name: (stage.init, stage.seed) for name, stage in recipe.stages.items()}
    assert found == {
        "sft-seed0": ("student", 0), "sft-seed7": ("student", 7), "original-seed0": ("sft-seed0", 0),
        "original-seed7": ("sft-seed7", 7), "other": ("student", 0),
    }  # fmt: skip
    assert load_recipe(recipe.model_dump(mode="json")) == recipe
