"""The recipe: YAML becomes typed, frozen settings; every rule across fields is checked here.

A recipe stands alone: a field that it leaves out has the default given here, never another recipe's value.
"""

from distill.config.dataset import Best, Dataset, Judge, Quality, Verifier
from distill.config.generation import ONE_DEVICE, EngineMesh, Generation, Sampling
from distill.config.models import Derive, Model
from distill.config.prompts import Filters, Mixed, Prompts, Source
from distill.config.reading import load_recipe, read_recipe
from distill.config.recipe import Recipe
from distill.config.resources import Needs, Resources, Storage, TrainingNeeds
from distill.config.results import Comparison, Evaluation, Plan, Publish, Report, Target
from distill.config.settings import NAME, did_you_mean
from distill.config.stages import NUMBERS, Stage
from distill.config.training import HiddenStates, Lora, MeshShape, OnPolicy, Part, Schedule

__all__ = [
    "NAME",
    "NUMBERS",
    "ONE_DEVICE",
    "Best",
    "Comparison",
    "Dataset",
    "Derive",
    "EngineMesh",
    "Evaluation",
    "Filters",
    "Generation",
    "HiddenStates",
    "Judge",
    "Lora",
    "MeshShape",
    "Mixed",
    "Model",
    "Needs",
    "OnPolicy",
    "Part",
    "Plan",
    "Prompts",
    "Publish",
    "Quality",
    "Recipe",
    "Report",
    "Resources",
    "Sampling",
    "Schedule",
    "Source",
    "Stage",
    "Storage",
    "Target",
    "TrainingNeeds",
    "Verifier",
    "did_you_mean",
    "load_recipe",
    "read_recipe",
]
