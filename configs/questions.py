"""Questions about your documents, written and checked by a language model.

    python launch/write_questions.py --config=configs/questions.py --config.data.path=FOLDER
    python launch/compare.py --config=configs/compare.py --config.data.path=runs/questions/data

Cost: two questions on each of 64 passages took a model of 1.5B some forty minutes of two busy CPU
cores and 8.2 GB; 55 were kept, and 43 of the first fifty are sound (`docs/guides/questions.md`).
"""

import ml_collections

from rag_jax.config import choose_preset, to_config_dict
from rag_jax.systems.questions.config import QuestionsConfig

PRESETS = {"": QuestionsConfig()}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """The settings of three questions on each of 150 passages."""
    return to_config_dict(choose_preset(PRESETS, preset))
