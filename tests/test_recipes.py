"""The recipes that come along are recipes, and the files that they name are there."""

from pathlib import Path

import pytest

from distill.config.reading import read_recipe
from distill.inputs import dataset_files

ROOT = Path(__file__).resolve().parent.parent
RECIPES = [ROOT / "config.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_can_be_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = read_recipe(file)
    dataset_files(recipe.prompts, "prompts")
    if recipe.evaluation:
        dataset_files(recipe.evaluation, "evaluation")
    for model in recipe.models.values():
        assert model.derive or model.local or model.revision, "a Hub id without its commit is another model tomorrow"
