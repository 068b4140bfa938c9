"""Questions about your documents, written and checked by a language model.

python launch/write_questions.py --config=configs/questions.py --config.data.path=FOLDER
python launch/compare.py --config=configs/compare.py --config.data.path=runs/questions/data

"""

import ml_collections

from rag_jax.config import choose_preset, to_config_dict
from rag_jax.systems.questions.config import QuestionsConfig

PRESETS = {"": QuestionsConfig()}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """The settings of three questions on each of 150 passages."""
    return to_config_dict(choose_preset(PRESETS, preset))
