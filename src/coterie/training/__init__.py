"""How they learn: whatever reads a loss, a label or a gradient."""

from coterie.training.consistency import Consistency, divergence
from coterie.training.curve import Unseen, Worth, measure_curve, worth
from coterie.training.distill import LiveTeacher, Teacher, distill, distillation_loss
from coterie.training.fit import fit
from coterie.training.groups import Group, Groups
from coterie.training.objective import Objective
from coterie.training.pocket import PocketRecipe, train_pocket
from coterie.training.recipe import Recipe, changed, shipped_recipes
from coterie.training.recipe_read import read_recipe
from coterie.training.recipe_run import train_recipe
from coterie.training.residual import residual_dropout
from coterie.training.schedules import Schedule, constant, cosine, exponential, linear, multi_step, piecewise, schedule
from coterie.training.sparsify import Sparsify, zero_shot
from coterie.training.stored_teacher import StoredTeacher, store_teacher
from coterie.training.summary import Outcome
from coterie.training.text import read_domains, read_text
from coterie.training.tokens import token_ids, train_tokenizer
from coterie.training.trainer import Options, language_trainer, last_checkpoint, read_log, train_from
from coterie.training.trigram import Trigram
from coterie.training.windows import Windows

__all__ = [
    "Consistency",
    "Group",
    "Groups",
    "LiveTeacher",
    "Objective",
    "Options",
    "Outcome",
    "PocketRecipe",
    "Recipe",
    "Schedule",
    "Sparsify",
    "StoredTeacher",
    "Teacher",
    "Trigram",
    "Unseen",
    "Windows",
    "Worth",
    "changed",
    "constant",
    "cosine",
    "distill",
    "distillation_loss",
    "divergence",
    "exponential",
    "fit",
    "language_trainer",
    "last_checkpoint",
    "linear",
    "measure_curve",
    "multi_step",
    "piecewise",
    "read_domains",
    "read_log",
    "read_recipe",
    "read_text",
    "residual_dropout",
    "schedule",
    "shipped_recipes",
    "store_teacher",
    "token_ids",
    "train_from",
    "train_pocket",
    "train_recipe",
    "train_tokenizer",
    "worth",
    "zero_shot",
]
