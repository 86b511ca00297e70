"""The whole schema under the name that configs and scripts import.

`fairjax/experiment/config/schema.py` defines every field, with its unit and default.
"""

from fairjax.experiment.config.default import get_config as get_config
from fairjax.experiment.config.default import preset as preset
